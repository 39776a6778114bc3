"""Nystrom attention as `nystrom_attention` computes it, for each bag as if it were alone."""

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require, require_number, require_whole
from softmaxfree.errors import InputError
from softmaxfree.layers.linear import Linear
from softmaxfree.mil.bags import as_mask
from softmaxfree.mil.segments import segment_means, segment_numbers
from softmaxfree.mixers.nystrom import pseudo_inverse
from softmaxfree.mixers.softmax import softmax_attention
from softmaxfree.ops import transforms
from softmaxfree.ops.precision import full_precision, widen

__all__ = ["NystromAttention", "PadMode"]

PadMode = Literal["official", "official-0.0.9", "none"]

_AT_ONCE = 8192  # tokens whose result inference computes at once


class NystromAttention(nn.Module):
    """`F Z (B v) + conv(v)`, a drop-in for `nystrom_attention.NystromAttention` 0.0.14: constructor, keys and results.

    `F = s(q l_k^T)`, `B = s(l_q k^T)`, `s` the softmax of rows over `sqrt(dim_head)`, `l_q` and `l_k` the means of
    segments; `Z` is `pinv_iterations` steps towards the inverse of `s(l_q l_k^T)`, far from it at 6. As in the package
    zero rows are put before the tokens until the segments are equally long, and take part in the softmaxes.

    The package starts the steps from norms over the whole batch, and lets a mask mark the zero rows and lengthen the
    segments, so that bags change each other, and padding changes a bag. Here each bag is computed from its valid tokens
    alone: a batch equals its bags one at a time. No matrix with a row or column for each token is kept. Under autocast
    everything is float32.

    Args:
        dim: width of the tokens.
        dim_head: width of a head.
        heads: number of heads.
        num_landmarks: number of segments.
        pinv_iterations: steps towards the inverse.
        residual: whether a convolution of the values along the tokens is added, one filter for each head.
        residual_conv_kernel: its length, odd.
        eps: not used: it kept the package's means of masked segments finite.
        dropout: behind the last linear layer.
        project_out: whether there is a last linear layer.
        pad_mode: "official": as above; "official-0.0.9": the rows returned are the first, as in the package up to
            0.0.9, so that a token gets the row of one before it; "none": no zero rows, segments of equal length up to
            one token, no more than there are tokens.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        dim: int,
        dim_head: int = 64,
        heads: int = 8,
        num_landmarks: int = 256,
        pinv_iterations: int = 6,
        residual: bool = True,
        residual_conv_kernel: int = 33,
        eps: float = 1e-8,
        dropout: float = 0.0,
        *,
        project_out: bool = True,
        pad_mode: PadMode = "official",
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "dim_head": dim_head, "heads": heads, "num_landmarks": num_landmarks}
        for name, size in (sizes | {"pinv_iterations": pinv_iterations}).items():
            require_whole(name, size, 1)
        require_number("dropout", dropout, 0, below=1)
        require(pad_mode in get_args(PadMode), "pad_mode", pad_mode, f"one of {', '.join(get_args(PadMode))}")
        inner = heads * dim_head
        self.dim, self.heads, self.num_landmarks, self.pinv_iterations = dim, heads, num_landmarks, pinv_iterations
        self.pad_mode, self.residual = pad_mode, residual
        self.to_qkv = Linear(dim, 3 * inner, bias=False)
        self.to_out: nn.Module = nn.Identity()
        if project_out:
            self.to_out = nn.Sequential(Linear(inner, dim), nn.Dropout(dropout))
        else:
            require(inner == dim, "heads * dim_head", inner, f"{dim}, the width, without a last layer")
        if residual:
            require_whole("residual_conv_kernel", residual_conv_kernel, 1)
            require(residual_conv_kernel % 2 == 1, "residual_conv_kernel", residual_conv_kernel, "odd")
            self.res_conv = nn.Conv2d(
                heads,
                heads,
                (residual_conv_kernel, 1),
                padding=(residual_conv_kernel // 2, 0),
                groups=heads,
                bias=False,
            )

    def forward(
        self, x: Tensor, mask: Tensor | None = None, return_attn: bool = False, return_attn_matrices: bool = False
    ) -> Any:
        """Mixes the tokens of each bag.

        Args:
            x: tokens `(B, N, dim)`.
            mask: `(B, N)` bool or uint8, True where a token is valid, anywhere; the others may hold anything.
            return_attn: whether to return `F Z B` too, quadratic in the tokens.
            return_attn_matrices: whether to return `F`, `Z` and `B` too.

        Returns:
            `(B, N, dim)`, 0 where a token is not valid; with the matrix `(B, heads, P, P)`, or `(F, Z, B)` of
            `(B, heads, P, M)`, `(B, heads, M, M)`, `(B, heads, M, P)` with `P` the tokens and zero rows.

        Raises:
            InputError: shapes do not fit, a bag has no valid token, or matrices of bags of unequal sizes are asked for.
        """
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.dim:
            raise InputError(f"x must be tokens (B, N, {self.dim}), N 1 or more, got {tuple(x.shape)}")
        count, mask = len(x), None if mask is None else as_mask(mask, x)
        if not count:  # the shapes of one bag, without the bag
            x, mask = x.new_zeros(1, *x.shape[1:]), None
        bags = [bag[None] for bag in x] if mask is None else _valid_tokens(x, mask)
        if (return_attn or return_attn_matrices) and len({bag.shape[1] for bag in bags}) > 1:
            raise InputError("return_attn must be False for bags of unequal sizes, whose matrices are of unequal sizes")
        outs, matrices = [], []
        for bag in bags:
            parts = self.parts(bag)
            outs.append(self._out(parts))
            if return_attn or return_attn_matrices:
                matrices.append(_matrices(parts))
        out = (torch.cat(outs) if mask is None else _put_back(outs, mask))[:count]
        if not matrices:
            return out
        f, z, b = (torch.cat(own)[:count] for own in zip(*matrices, strict=True))
        return out, ((f, z, b) if return_attn_matrices else f @ z @ b)

    def parts(self, x: Tensor) -> "Parts":
        """Returns what the result of a bag is made of; `x` are its tokens `(1, N, dim)`."""
        n, m = x.shape[1], self.num_landmarks
        with full_precision(x):
            pad = 0 if self.pad_mode == "none" else -n % m
            qkv = widen(self.to_qkv(F.pad(x.to(self.to_qkv.weight.dtype), (0, 0, pad, 0))))
            q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # (1, H, P, D)
            if self.pad_mode == "none":
                numbers, made = segment_numbers(torch.tensor([n], device=x.device), n, m)
                of_queries, of_keys = (segment_means(t, numbers, m)[:, :, : int(made)] for t in (q, k))
            else:
                of_queries, of_keys = (t.unflatten(2, (m, -1)).mean(3) for t in (q, k))
            logits = of_queries @ of_keys.mT * q.shape[-1] ** -0.5
            inverse = pseudo_inverse(logits.softmax(-1), self.pinv_iterations, shared_start=True)
        first = 0 if self.pad_mode == "official-0.0.9" else pad
        return Parts(q, k, v, of_queries, of_keys, inverse, slice(first, first + n), pad)

    def _out(self, parts: "Parts") -> Tensor:
        """Returns the result `(1, N, dim)`."""
        q, k, v = parts.q, parts.k, parts.v
        with full_precision(q):
            summary = parts.inverse @ softmax_attention(parts.of_queries, k, v)
            whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or transforms.at_work()
            first, end = parts.rows.start, parts.rows.stop
            step = end - first if whole else _AT_ONCE
            outs = []
            for begin in range(first, end, step):
                rows = slice(begin, min(begin + step, end))
                out = softmax_attention(q[:, :, rows], parts.of_keys, summary)
                if self.residual:
                    out = out + self._convolved(v, rows)
                outs.append(self.to_out(out.transpose(1, 2).flatten(2).to(self.to_qkv.weight.dtype)))
            return torch.cat(outs, 1)

    def _convolved(self, v: Tensor, rows: slice) -> Tensor:
        """Returns rows of the values `(1, H, P, D)` convolved along the tokens."""
        weight, reach = widen(self.res_conv.weight), self.res_conv.kernel_size[0] // 2
        first, end = rows.start - reach, rows.stop + reach
        seen = v[:, :, max(first, 0) : end]
        beyond = (0, 0, max(-first, 0), max(end - v.shape[2], 0))
        return F.conv2d(F.pad(seen, beyond), weight, groups=self.heads)

    def row(self, x: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """Returns with which weights a token takes the values of all, without a matrix of all pairs.

        Args:
            x: tokens of a bag `(1, N, dim)`.
            token: number of the one that asks.

        Returns:
            Its row of `F Z B`, and that of the convolution, `(heads, N)` each; weights may be negative. Those of the
            zero rows are left out, as their values are 0.
        """
        parts = self.parts(x)
        q, scale = parts.q, parts.q.shape[-1] ** -0.5
        at = parts.rows.start + token
        with full_precision(q):
            of_landmarks = (q[0, :, at, None] @ parts.of_keys[0].mT * scale).softmax(-1) @ parts.inverse[0]  # (H, 1, M)
            heads = zip(of_landmarks, parts.of_queries[0], parts.k[0], strict=True)
            mixed = torch.cat([own @ (landmarks @ k.mT * scale).softmax(-1) for own, landmarks, k in heads])
            local = torch.zeros_like(mixed)
            if self.residual:
                filters = widen(self.res_conv.weight).flatten(1)
                first = at - filters.shape[1] // 2  # of the tokens, zero rows included, that the filter sees
                begin, end = max(first, 0), min(first + filters.shape[1], mixed.shape[1])
                local[:, begin:end] = filters[:, begin - first : end - first]
        return mixed[:, parts.pad :], local[:, parts.pad :]

    def values(self, x: Tensor) -> Tensor:
        """Returns the values of the tokens of a bag `(1, N, dim)`, `(heads, N, dim_head)`."""
        return self.to_qkv(x).unflatten(2, (3, self.heads, -1))[0, :, 2].transpose(0, 1)


class Parts(NamedTuple):
    """Queries, keys, values `(1, H, P, D)`, landmarks `(1, H, M, D)`, `Z`, which rows are returned, how many are 0."""

    q: Tensor
    k: Tensor
    v: Tensor
    of_queries: Tensor
    of_keys: Tensor
    inverse: Tensor
    rows: slice
    pad: int


def _matrices(parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    scale = parts.q.shape[-1] ** -0.5
    with full_precision(parts.q):
        f = (parts.q @ parts.of_keys.mT * scale).softmax(-1)
        return f, parts.inverse, (parts.of_queries @ parts.k.mT * scale).softmax(-1)


def _valid_tokens(x: Tensor, mask: Tensor) -> list[Tensor]:
    bags = [bag[own][None] for bag, own in zip(x, mask, strict=True)]
    for i, bag in enumerate(bags):
        require(bag.shape[1] > 0, f"mask of bag {i}", "no valid token", "True for one token or more")
    return bags


def _put_back(outs: list[Tensor], mask: Tensor) -> Tensor:
    out = outs[0].new_zeros(*mask.shape, outs[0].shape[2])
    return out.index_put(mask.nonzero(as_tuple=True), torch.cat([own[0] for own in outs]))
