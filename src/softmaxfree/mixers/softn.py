"""Softmax attention as a row-normalised Gaussian kernel with weighted keys, through landmarks.

With `q' = q - mean(q)` and `k' = k - mean(k)` over the tokens, softmax attention is exactly

    exp(q_i . k_j) / sum  =  exp(-|q'_i - k'_j|^2 / 2) w_j / sum,    w_j = exp(mean(q) . k'_j + |k'_j|^2 / 2),

since what is left over depends on the query alone and cancels in the row. So a trained softmax attention keeps its
queries and keys, and the kernel is decomposed as in SOFT (eq. 9). Centred, points lie near each other, so that few
landmarks tell the kernel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require_number, require_whole
from softmaxfree.mixers.mixer import AbstractAttention, num_valid, require_flag, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.rows import in_rows
from softmaxfree.mixers.windows import window_means
from softmaxfree.ops import AbstractPinvSolver, Cholesky, as_solver
from softmaxfree.ops.nystrom import landmark_core
from softmaxfree.ops.precision import full_precision, widen

_LOG2_E = 1 / math.log(2)
_SOLVER = Cholesky(ridge=0.1)


@register
class RowNormalizedAttention(AbstractAttention):
    """Softmax attention through the Gaussian kernel `K(x, y) = exp(-|x - y|^2 / 2)` of centred queries and keys.

    Each row is `K(q', l) A+ K(l, k') w v` over the same of ones, `A = K(l, l)`, with landmarks `l` that are means of
    windows of keys. The keys of prefix tokens and the `exact_keys` of greatest weight are kept outside of the
    decomposition: few keys, such as that of a class token, have most of the weight in trained networks. Factors that
    cancel in a row are left out, so that rows far from all landmarks keep their precision. The decomposition can be
    negative; a denominator is at least `floor` of the sum of its terms' magnitudes.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        ratio: side of the windows.
        landmark_grid: most landmarks along each axis of the grid, two numbers, or one for sequences; more are averaged.
        solver: inverts the landmark kernel matrix: a solver, its `to_dict()`, or its name.
        exact_keys: how many keys of the grid are exact.
        floor: least denominator, as a part of the sum of magnitudes.
        maps: whether queries and keys go through a matrix of each head, `D x D`, which begins as the identity.
        device: of the weights.
        dtype: of the weights.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "softn"
    source = "SOFT, NeurIPS 2021, with rows normalised"
    approximates = "softmax"
    adjustable = ("solver", "landmark_grid")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        ratio: int = 1,
        landmark_grid: Sequence[int] = (12, 12),
        solver: AbstractPinvSolver | Mapping[str, Any] | str = _SOLVER,
        exact_keys: int = 16,
        floor: float = 0.1,
        maps: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, device=device, dtype=dtype, **common)
        require_whole("exact_keys", exact_keys, 0)
        require_number("floor", floor, 0, 1)
        require_flag("maps", maps)
        self.landmarks = window_means(ratio, landmark_grid)
        self.ndims = (len(landmark_grid),)
        self.ratio, self.exact_keys, self.floor, self.maps = ratio, exact_keys, floor, maps
        self.q_map = self.k_map = None
        if maps:
            one = torch.eye(self.head_dim, device=device, dtype=dtype).repeat(num_heads, 1, 1)
            self.q_map, self.k_map = nn.Parameter(one), nn.Parameter(one.clone())
        self.adjust(solver=solver)

    @property
    def min_grid(self) -> int:
        """Least number of tokens along each axis: one window."""
        return self.ratio

    @property
    def landmark_grid(self) -> list[int]:
        """The landmark budget."""
        return list(self.landmarks.max_grid or ())

    def adjust(self, **changes: Any) -> None:
        """Changes `solver` or `landmark_grid`, see the constructor.

        Args:
            **changes: new values.

        Raises:
            InputError: there is no such argument, or the value is out of range.
        """
        if "solver" in changes:
            self.solver = as_solver(changes.pop("solver"))
        if "landmark_grid" in changes:
            grid = changes.pop("landmark_grid")
            self.landmarks.set_max_grid(tuple(grid) if isinstance(grid, Sequence) else grid)
        super().adjust(**changes)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`; there may be more or fewer queries than keys where there is no mask."""
        with full_precision(v):
            dtype, prefix = v.dtype, k.shape[2] - math.prod(grid)
            q, q_mean = _centred(self._scaled(q, self.q_map), mask)
            k, _ = _centred(self._scaled(k, self.k_map), mask)
            ones = k.new_ones((*v.shape[:3], 1))
            values = torch.cat([widen(v), ones], -1)
            if mask is not None:
                values = zero_tokens(values, mask)
            landmarks = self.landmarks(k[:, :, prefix:], grid, mask)
            valid = None if mask is None else self.landmarks.valid(mask)
            exact = [(k[:, :, :prefix], values[:, :, :prefix])]
            others = k[:, :, prefix:], values[:, :, prefix:]
            if self.exact_keys:
                first, rest = self._heaviest(q_mean, *others, mask)
                exact, others = [*exact, first], rest
            weighted, scale = _summary(landmarks + q_mean, *others, landmarks, valid)
            z = landmark_core(landmarks / math.sqrt(_LOG2_E), self.solver.json, False, valid)
            weighted = z.to(weighted.dtype) @ weighted
            keys, own = (torch.cat(parts, 2) for parts in zip(*exact, strict=True))
            offsets = torch.cat([_offsets(landmarks, valid), (keys @ q_mean.mT).squeeze(-1) - scale], -1)
            points = torch.cat([landmarks, keys], 2)
            sums = torch.cat([weighted, own], 2)
            sums = torch.cat([sums, sums[..., -1:].abs()], -1)
            out = in_rows(lambda some: _normalised(some, points, offsets, sums, self.floor), q, points)
            return out.to(dtype)

    def _scaled(self, x: Tensor, own: Tensor | None) -> Tensor:
        """Returns points `(B, H, N, D)` of which inner products are logits to base 2."""
        x = widen(x) * math.sqrt(self.scale * _LOG2_E)  # the exponential to base 2 is the fast one
        return x if own is None else x @ own.to(x.dtype)

    def _heaviest(
        self, q_mean: Tensor, k: Tensor, values: Tensor, mask: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Returns keys and values of the greatest weights, and all keys with the values of the others."""
        with torch.no_grad():
            weight = (k @ q_mean.mT).squeeze(-1) + k.square().sum(-1) / 2  # log w, to base 2
            if mask is not None:
                weight = weight.masked_fill(~mask.flatten(1).unsqueeze(1), -torch.inf)
            # a grid of fewer cells is padded, so that exported programs need no choice
            places = F.pad(weight, (0, self.exact_keys), value=-torch.inf).topk(self.exact_keys).indices
            there = (places < k.shape[2]).unsqueeze(-1)
            places = places.clamp_max(k.shape[2] - 1)
            left = torch.ones_like(weight).scatter(-1, places, 0.0).unsqueeze(-1)
        own = [x.gather(2, places.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])) for x in (k, values)]
        return (own[0], own[1] * there), (k, values * left)


def _centred(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns points seen from their mean, 0 in the padding, and the mean `(B, H, 1, D)`."""
    if mask is None:
        mean = x.mean(2, keepdim=True)
        return x - mean, mean
    mean = zero_tokens(x, mask).sum(2, keepdim=True) / num_valid(mask, x)
    return zero_tokens(x - mean, mask), mean


def _offsets(landmarks: Tensor, valid: Tensor | None) -> Tensor:
    """Returns `-|l|^2 / 2`, `(B, H, M)`, and hardly anything for invalid landmarks."""
    offsets = landmarks.square().sum(-1) / -2
    return offsets if valid is None else offsets.masked_fill(~valid.unsqueeze(1), torch.finfo(offsets.dtype).min / 4)


def _summary(
    points: Tensor, k: Tensor, values: Tensor, landmarks: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns `K(l, k) w v`, over 2 to the power of `scale`, `(B, H, M, E + 1)`, and `scale (B, H, 1)`.

    `|k|^2` cancels: `-|l - k|^2 / 2 + log w = (l + mean(q)) . k - |l|^2 / 2`.
    """

    def rows(some: Tensor) -> Tensor:
        logits = some @ k.mT
        top = logits.detach().amax(-1, keepdim=True)
        return torch.cat([(logits - top).exp2_() @ values, top], -1)

    found = in_rows(rows, points, k)
    size = found[..., -1] + _offsets(landmarks, valid)
    scale = size.detach().amax(-1, keepdim=True)
    sums = found[..., :-1] * (size - scale).exp2().unsqueeze(-1)
    return (sums if valid is None else sums.masked_fill(~valid[:, None, :, None], 0.0)), scale


def _normalised(q: Tensor, points: Tensor, offsets: Tensor, sums: Tensor, floor: float) -> Tensor:
    """Returns weighted sums over denominators for queries `(B, H, n, D)`; `|q|^2` cancels, as all of a row's scale."""
    logits = q @ points.mT + offsets.unsqueeze(-2)
    kernel = (logits - logits.detach().amax(-1, keepdim=True)).exp2_()
    out = kernel @ sums
    least = torch.maximum(floor * out[..., -1:], out.new_full((), torch.finfo(out.dtype).tiny))
    return out[..., :-2] / torch.maximum(out[..., -2:-1], least)
