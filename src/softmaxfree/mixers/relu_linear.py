"""ReLU linear attention, with the multi-scale tokens of EfficientViT as a choice (Cai et al., 2023)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_number, require_odd
from softmaxfree.layers.embed import feature_map
from softmaxfree.layers.linear import Linear
from softmaxfree.mixers.features import linear_attention
from softmaxfree.mixers.mixer import AbstractAttention, require_flag, zero_tokens
from softmaxfree.mixers.registry import register


@register
class ReluLinearAttention(AbstractAttention):
    """`relu(q) (relu(k)^T v) / (relu(q) sum_j relu(k_j) + eps)`, eq. 2 and 3 of the paper.

    Rows sum to 1, but a query without a positive channel gets 0. The released code, LiteMLA, has `eps=1e-15`, whose
    gradient is without bound at such a query; it follows `proj` with a batch norm, which in evaluation is part of
    `proj`.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        eps: added to the denominator.
        scales: odd sides of filters. For each, queries, keys and values are convolved on the grid, channel by channel
            and then within each head, and make as many heads again. Needs images, without prefix tokens.
        interleaved: whether the projection's outputs are ordered head by head, as released; else queries come first.
        device: of the weights.
        dtype: of the weights.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "relu_linear"
    source = "EfficientViT, ICCV 2023"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        eps: float = 1e-6,
        scales: Sequence[int] = (),
        interleaved: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **common: Any,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, **common, **factory)
        require_number("eps", eps, 0)
        require_flag("interleaved", interleaved)
        require(isinstance(scales, Sequence), "scales", scales, "a sequence of odd numbers")
        for side in scales:
            require_odd("scales", side)
            require(side > 0, "scales", side, "1 or more each")
        self.eps, self.scales, self.interleaved = eps, tuple(scales), interleaved
        self.aggregations = nn.ModuleList(_aggregation(dim, num_heads, side, factory) for side in scales)
        if scales:
            self.ndims, self.prefix = (2,), False  # the filters need an image
            require(self.value_conv is None, "value_kernel", self.value_kernel, "0 with scales")
            self.proj = Linear(dim * (1 + len(scales)), dim, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to queries, keys and values, `(B, H, N, D)` each."""
        if not self.interleaved:
            return super().project(x)
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).unbind(3)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`; with `scales` the heads of each follow, `(B, H (1 + scales), N, E)`."""
        if self.scales:
            q, k, v = self.aggregate(q, k, v, grid, mask)
        return linear_attention(F.relu(q), F.relu(k), v, mask, eps=self.eps)

    def aggregate(
        self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values with those of each scale as further heads."""
        if mask is not None:
            q, k, v = (zero_tokens(x, mask) for x in (q, k, v))
        axis = 2 if self.interleaved else 1
        each = torch.stack((q, k, v), axis)  # (B, H, 3, N, D), or (B, 3, H, N, D)
        image = feature_map(each.permute(0, 3, 1, 2, 4).flatten(2), grid)
        scales = [each]
        for aggregation in self.aggregations:
            out = aggregation(image).flatten(2).transpose(1, 2)
            scales.append(out.unflatten(-1, (*each.shape[1:3], -1)).permute(0, 2, 3, 1, 4))
        q, k, v = torch.cat(scales, 3 - axis).unbind(axis)
        return q, k, v


def _aggregation(dim: int, num_heads: int, side: int, factory: dict[str, Any]) -> nn.Sequential:
    """Convolves each channel of queries, keys and values, and mixes those of each head."""
    depthwise = nn.Conv2d(3 * dim, 3 * dim, side, padding=side // 2, groups=3 * dim, bias=False, **factory)
    return nn.Sequential(depthwise, nn.Conv2d(3 * dim, 3 * dim, 1, groups=3 * num_heads, bias=False, **factory))
