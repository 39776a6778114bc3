"""Injective linear attention (InLine, arXiv 2412.06590, eq. 5)."""

import math
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require
from softmaxfree.layers.embed import feature_map as as_map
from softmaxfree.mixers.mixer import AbstractAttention, num_valid, require_flag, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen

_SIDE, _SLOPE = 3, 0.2  # of the dynamic kernels; of the exponential map


@register
class InjectiveAttention(AbstractAttention):
    """Linear attention that subtracts where others divide, so that different queries never have the same weights.

    With `s_ij = D^(-1/2) phi(q_i) . phi(k_j) / N` the weights are `s_ij - mean_j s_ij + 1 / N`. Each row sums to 1;
    some weights are negative. `phi` is the identity, or `exp(0.2 x)`.

    With `dynamic_kernels` this is the released module: 3x3 filters, one a channel, that a small network makes of the
    mean token of each image; the values filtered by them are added to the result.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        feature_map: "identity" or "exp".
        dynamic_kernels: whether filters of each image's own are there.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "inline"
    source = "InLine, NeurIPS 2024"
    row_sum = 1.0

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        feature_map: Literal["identity", "exp"] = "identity",
        dynamic_kernels: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, **common)
        require(feature_map in ("identity", "exp"), "feature_map", feature_map, "one of identity, exp")
        require_flag("dynamic_kernels", dynamic_kernels)
        self.feature_map = feature_map
        self.dynamic_kernels: nn.Module | None = None
        if dynamic_kernels:
            factory = {key: common.get(key) for key in ("device", "dtype")}
            self.dynamic_kernels = nn.Sequential(
                nn.Conv1d(dim, dim, 1, groups=num_heads, **factory),
                nn.GELU(),
                nn.Conv1d(dim, dim * _SIDE**2, 1, groups=num_heads, **factory),
            )

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            queries, keys, values = widen(q), widen(k), widen(v)
            if self.feature_map == "exp":
                queries, keys = (queries * _SLOPE).exp(), (keys * _SLOPE).exp()
            if mask is not None:
                keys, values = zero_tokens(keys, mask), zero_tokens(values, mask)
            count = num_valid(mask, keys)
            queries = queries * self.scale
            mean_weight = queries @ (keys.sum(2, keepdim=True) / count).mT
            mean_value = values.sum(2, keepdim=True) / count
            return (queries @ (keys.mT @ (values / count)) + (1 - mean_weight) * mean_value).to(v.dtype)

    def local(self, x: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor | None:
        """Returns the values convolved by all filters there are, see `AbstractMixer.local`."""
        fixed = super().local(x, v, grid, mask)
        if self.dynamic_kernels is None:
            return fixed
        if mask is not None:
            x, v = zero_tokens(x, mask), zero_tokens(v, mask)
        mean = widen(x).unsqueeze(1).sum(2, keepdim=True) / num_valid(mask, v)
        kernels = self.dynamic_kernels(mean.flatten(1, 2).to(x.dtype).mT).view(-1, self.dim, _SIDE, _SIDE)
        out = _convolve_each(v.transpose(1, 2).flatten(2), kernels, grid)
        return out if fixed is None else out + fixed


def _convolve_each(v: Tensor, kernels: Tensor, grid: list[int]) -> Tensor:
    """Returns tokens `(B, N, C)` convolved by filters `(B, C, 3, 3)` of each image; zero at prefix tokens.

    A sequence is an image of one row. A sum over shifts takes any batch size into an exported graph, as a convolution
    with a group for each image and channel does not.
    """
    prefix = v.shape[1] - math.prod(grid)
    rows, columns = grid if len(grid) == 2 else (1, grid[0])
    padded = F.pad(as_map(v[:, prefix:], [rows, columns]), (1, 1, 1, 1))
    out: Any = sum(
        padded[:, :, i : i + rows, j : j + columns] * kernels[:, :, i, j, None, None]
        for i in range(_SIDE)
        for j in range(_SIDE)
    )
    out = out.flatten(2).transpose(1, 2)
    return F.pad(out, (0, 0, prefix, 0)) if prefix else out
