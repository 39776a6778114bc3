"""Focused linear attention (FLatten Transformer, ICCV 2023)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require_number
from softmaxfree.mixers.features import linear_attention
from softmaxfree.mixers.mixer import AbstractAttention, num_valid
from softmaxfree.mixers.positions import add_positions, key_positions
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen

_EPS = 1e-6  # of features, and of the mean weight, as in the released code


@register
class FocusedAttention(AbstractAttention):
    """Linear attention with features that a power makes sharper and that keep their length.

    Features are `f(t) = t^p |t| / |t^p|` of `t = (relu(x) + 1e-6) / softplus(temperature)`, with one learned
    temperature a channel; norms are over the channels of all heads. Attention is their product, divided by its sum.
    Rows sum to 1, but to almost 0 where a head has no positive channel of the query.

    With `position_grid` and `value_kernel=5` this is the released module: learned positions are added to the keys, and
    all heads share the filters of the values.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        focusing_factor: the power `p`.
        position_grid: rows and columns of a table of positions, resampled where the token grid has other sizes; None
            for no positions.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "focused"
    source = "FLatten Transformer, ICCV 2023"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        focusing_factor: float = 3.0,
        position_grid: Sequence[int] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, **common)
        require_number("focusing_factor", focusing_factor, 0)
        self.focusing_factor, self.position_grid = focusing_factor, position_grid
        factory = {key: common.get(key) for key in ("device", "dtype")}
        self.temperature = nn.Parameter(torch.zeros(dim, **factory))
        self.positions = key_positions(dim, position_grid, factory)

    @property
    def value_filter_channels(self) -> int:
        """Number of filters of `value_conv`: all heads share them."""
        return self.head_dim

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            k = add_positions(widen(k), self.positions, grid, mask)
            return linear_attention(self._focus(q), self._focus(k), v, mask, eps=_EPS * num_valid(mask, k))

    def _focus(self, x: Tensor) -> Tensor:
        """Returns features `(B, H, N, D)` in the dtype that ops compute in."""
        temperature = F.softplus(widen(self.temperature)).view(self.num_heads, 1, -1)
        x = (F.relu(widen(x)) + _EPS) / temperature
        powers = (x / x.detach().amax((1, 3), keepdim=True)) ** self.focusing_factor  # the factor cancels
        return powers * (_norm(x) / _norm(powers))


def _norm(x: Tensor) -> Tensor:
    """Returns the norm of each token of `(B, H, N, D)` over all heads, `(B, 1, N, 1)`."""
    return torch.linalg.vector_norm(x, dim=(1, 3), keepdim=True)
