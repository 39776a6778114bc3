"""Spatial-reduction attention of the Pyramid Vision Transformer (Wang et al., 2021)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require_whole
from softmaxfree.layers.embed import feature_map
from softmaxfree.layers.linear import Linear
from softmaxfree.layers.padding import at_stride
from softmaxfree.mixers.mixer import AbstractMixer, valid_tokens, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.softmax import softmax_attention


@register
class SpatialReductionAttention(AbstractMixer):
    """Softmax attention to keys and values of reduced tokens, `LayerNorm(conv(x))`, section 3.3 of the paper.

    The convolution has stride and side `ratio`, so cost is quadratic still, `1 / ratio^2` of softmax attention's. As
    their projections follow it, `mix` takes the tokens themselves for keys and values, and projects what is left. A
    grid that `ratio` does not divide is extended by zeros; the released code drops its end. Prefix tokens are not
    reduced.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        ratio: side of the windows that are reduced to one token; 1 for none, without convolution and norm.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    name = "spatial_reduction"
    source = "PVT, ICCV 2021"
    ndims = (2,)
    linear = False
    linear_in_v = False

    def __init__(
        self, dim: int, num_heads: int, *, ratio: int = 2, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(dim, num_heads)
        require_whole("ratio", ratio, 1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.ratio = ratio
        self.q = Linear(dim, dim, **factory)
        self.k = Linear(dim, dim, **factory)
        self.v = Linear(dim, dim, **factory)
        self.reduction = nn.Conv2d(dim, dim, ratio, stride=ratio, **factory) if ratio > 1 else None
        self.norm = nn.LayerNorm(dim, **factory) if ratio > 1 else None
        self.proj = Linear(dim, dim, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to queries, and twice themselves, `(B, H, N, D)` each."""
        tokens = self._heads(x)
        return self._heads(self.q(x)), tokens, tokens

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`; `k` and `v` are tokens before their projection, see `project`."""
        tokens = self.reduce(k, grid, mask)
        keys = self._heads(self.k(tokens))
        values = self._heads(self.v(tokens if v is k else self.reduce(v, grid, mask)))
        reduced = at_stride(mask, self.ratio)
        return softmax_attention(q, keys, values, None if reduced is None else valid_tokens(reduced, keys.shape[2]))

    def reduce(self, x: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Returns the prefix tokens and the reduced ones, `(B, M, C)`, of tokens `(B, H, N, D)`."""
        if mask is not None:
            x = zero_tokens(x, mask)  # as beyond the end of the image alone
        x = x.transpose(1, 2).flatten(2)
        if self.reduction is None or self.norm is None:
            return x
        prefix = x.shape[1] - math.prod(grid)
        height, width = grid
        image = F.pad(feature_map(x[:, prefix:], grid), (0, -width % self.ratio, 0, -height % self.ratio))
        reduced = self.reduction(image).flatten(2).transpose(1, 2)
        return self.norm(torch.cat((x[:, :prefix].to(reduced.dtype), reduced), 1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
