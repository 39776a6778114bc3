"""Polarity-aware linear attention (PolaFormer, arXiv 2501.15061)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require, require_number
from softmaxfree.mixers.features import by_sign, linear_attention
from softmaxfree.mixers.mixer import AbstractAttention, num_valid
from softmaxfree.mixers.positions import add_positions, key_positions
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen

_EPS = 1e-6  # of the mean weight, as in the released code


@register
class PolarityAwareAttention(AbstractAttention):
    """Linear attention that keeps products of negative channels, apart from those of channels with opposite signs.

    Of queries and keys `x / softplus(temperature)` the positive and the negative parts are taken to the power
    `p = 1 + alpha sigmoid(power)`; temperature and power are learned for each channel. Products of parts with the same
    sign are the weights of the first half of each head's values, products of parts with opposite signs those of the
    second half; each is divided by its own sum.

    With `position_grid`, `value_kernel=5` and `gate=True` this is the released module: learned positions are added to
    the keys, and all heads share the filters of the values.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim` into heads of an even width.
        alpha: how far the power may grow beyond 1.
        position_grid: rows and columns of a table of positions, resampled where the token grid has other sizes; None
            for no positions.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "polaformer"
    source = "PolaFormer, ICLR 2025"

    def __init__(
        self, dim: int, num_heads: int, *, alpha: float = 4.0, position_grid: Sequence[int] | None = None, **common: Any
    ) -> None:
        super().__init__(dim, num_heads, **common)
        require(self.head_dim % 2 == 0, "num_heads", num_heads, f"one that makes heads of an even width of {dim}")
        require_number("alpha", alpha, 0)
        self.alpha, self.position_grid = alpha, position_grid
        factory = {key: common.get(key) for key in ("device", "dtype")}
        self.temperature = nn.Parameter(torch.zeros(dim, **factory))
        self.power = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim, **factory))
        self.positions = key_positions(dim, position_grid, factory)

    @property
    def value_filter_channels(self) -> int:
        """Number of filters of `value_conv`: all heads share them."""
        return self.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            queries, keys = self._parts(q), self._parts(add_positions(widen(k), self.positions, grid, mask))
            eps = _EPS * num_valid(mask, keys)
            first, second = v.chunk(2, -1)
            same = linear_attention(queries, keys, first, mask, eps=eps)
            opposite = linear_attention(queries.roll(self.head_dim, -1), keys, second, mask, eps=eps)
            return torch.cat([same, opposite], -1)

    def _parts(self, x: Tensor) -> Tensor:
        """Returns powers of the positive, then of the negative parts `(B, H, N, 2 D)` in the dtype of ops."""
        temperature = F.softplus(widen(self.temperature)).view(self.num_heads, 1, -1)
        power = 1 + self.alpha * widen(self.power).sigmoid()
        return by_sign(widen(x) / temperature) ** power.repeat(1, 1, 2)
