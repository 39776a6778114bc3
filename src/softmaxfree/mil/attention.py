"""Softmax-free attention of a bag, and the row of its class token."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require_whole
from softmaxfree.layers.linear import Linear
from softmaxfree.mil.segments import segment_means, segment_numbers
from softmaxfree.mixers.mixer import AbstractMixer, num_valid, require_flag, valid_tokens
from softmaxfree.ops import AbstractPinvSolver, Newton, as_solver
from softmaxfree.ops.nystrom import nystrom
from softmaxfree.ops.precision import full_precision, widen

__all__ = ["ClassRow", "SegmentAttention"]

_SOLVER = Newton()


class SegmentAttention(AbstractMixer):
    """`K(q, l) A+ K(l, q) v / n`, Gaussian attention whose landmarks are the means of segments of a sequence.

    The kernel is that of the mixer "soft". A Gaussian kernel sums over the tokens, so that a bag of 100 times the
    patches would give 100 times the result: `n`, the number of valid tokens, divides it. Segments are of equal length
    up to one token, at most as many as there are tokens.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        num_landmarks: number of segments.
        solver: inverts the landmark kernel matrix: a solver, its `to_dict()`, or its name.
        normalize: the symmetric normalisation of SOFT++.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    name = "soft"
    source = "SOFT, NeurIPS 2021"
    approximates = "gaussian"
    ndims = (1,)
    prefix = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_landmarks: int = 256,
        solver: AbstractPinvSolver | Mapping[str, Any] | str = _SOLVER,
        normalize: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads)
        require_whole("num_landmarks", num_landmarks, 1)
        require_flag("normalize", normalize)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_landmarks, self.solver, self.normalize = num_landmarks, as_solver(solver), normalize
        self.q = Linear(dim, dim, **factory)
        self.v = Linear(dim, dim, **factory)
        self.proj = Linear(dim, dim, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to scaled queries, which are the keys too, and values, `(B, H, N, D)` each."""
        heads = (self.num_heads, self.head_dim)
        q = (self.q(x) * self.head_dim**-0.25).unflatten(-1, heads).transpose(1, 2)
        return q, q, self.v(x).unflatten(-1, heads).transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        tokens = q.shape[2]
        lengths = torch.full((len(q),), tokens, device=q.device) if mask is None else mask.sum(1)
        most = min(self.num_landmarks, tokens)
        numbers, made = segment_numbers(lengths, tokens, most)
        with full_precision(v):
            dtype, tied = v.dtype, k is q
            q, v = widen(q), widen(v) / num_valid(mask, v)
            k = q if tied else widen(k)
            landmarks = segment_means(q, numbers, most)
            valid, there = None, None
            if mask is not None:
                valid, there = valid_tokens(mask, tokens), torch.arange(most, device=q.device) < made[:, None]
            keys = None if tied else k
            return nystrom(q, keys, v, landmarks, self.solver.json, self.normalize, valid, there).to(dtype)


class ClassRow(nn.Module):
    """What a class token takes from the patches: its exact row of the Gaussian kernel, normalised, and their peaks.

    `sum_j w_hj v_hj`, `w_hj = K(q_h, k_hj) / sum_j K(q_h, k_hj)`, costs time linear in the patches without landmarks,
    which a patch far from all of them would not pass. A mean hardly shows one patch in 10,000, so that the greatest
    value of each channel is added. Both are the same for a bag whose patches all occur twice.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        peaks: whether the greatest values are added.
    """

    def __init__(self, dim: int, num_heads: int, peaks: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)  # of the token
        self.q = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.peak = Linear(dim, dim) if peaks else None

    def forward(self, token: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reads a bag.

        Args:
            token: class token `(1, 1, C)`.
            x: patches `(B, N, C)`, normalised.
            mask: `(B, N)` bool, True for a patch.

        Returns:
            What is added to the class token, `(B, C)`.
        """
        out = (self.row(token, x, mask)[:, :, None] @ widen(self._heads(self.v(x)))).flatten(1).to(x.dtype)
        if self.peak is None:
            return out
        peaks = self.peak(x)
        return out + (peaks if mask is None else peaks.masked_fill(~mask[..., None], -torch.inf)).amax(1)

    def row(self, token: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the weights `(B, H, N)`, 0 in the padding; those of a head sum to 1, also in half precision."""
        q, k = (self._heads(self.q(each)) for each in (self.norm(token), x))
        with full_precision(x):
            q, k = (widen(each) * each.shape[3] ** -0.25 for each in (q, k))
            logits = (k - q).square().sum(-1) * -0.5
            if mask is not None:
                logits = logits.masked_fill(~mask[:, None], -torch.inf)
            return logits.softmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
