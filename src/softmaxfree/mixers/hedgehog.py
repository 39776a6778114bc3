"""Hedgehog: learned feature maps that mimic softmax (Zhang et al., 2024, arXiv 2402.04347)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require
from softmaxfree.mixers.features import linear_attention
from softmaxfree.mixers.mixer import AbstractAttention
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen

_EPS = 1e-12  # of the sum of the weights, as in the released code
_MAPS = ("joint", "separate", "exp")


@register
class HedgehogAttention(AbstractAttention):
    """Linear attention with features `phi(y)` of `y = W x + b`, a learned map each for queries and keys.

    All heads share `W` and `b`, which start as the identity and 0. Nothing is scaled by `D^(-1/2)`. The maps have `2 D`
    features:

    - "joint": `softmax([2 y, -2 y])` over all of them, as in flash-linear-attention.
    - "separate": `[softmax(y), softmax(-y)]`, as in LoLCATs by the authors, but with a bias and one `W` for all heads.
    - "exp": `[exp(y - max y), exp(min y - y)]`, as in LoLCATs too; both without its lower bound of 1e-12.

    They are not the same attention: a factor of each query cancels, one of each key does not.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        feature_map: "joint", "separate" or "exp".
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "hedgehog"
    source = "Hedgehog, ICLR 2024"
    row_sum = 1.0

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        feature_map: Literal["joint", "separate", "exp"] = "joint",
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, **common)
        known = isinstance(feature_map, str) and feature_map in _MAPS
        require(known, "feature_map", feature_map, f"one of {', '.join(_MAPS)}")
        self.feature_map = feature_map
        factory = {key: common.get(key) for key in ("device", "dtype")}
        # no linear layers, which a network gives a start of its own
        self.q_weight, self.k_weight = (nn.Parameter(torch.eye(self.head_dim, **factory)) for _ in range(2))
        self.q_bias, self.k_bias = (nn.Parameter(torch.zeros(self.head_dim, **factory)) for _ in range(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            queries = self._features(q, self.q_weight, self.q_bias)
            keys = self._features(k, self.k_weight, self.k_bias)
            return linear_attention(queries, keys, v, mask, eps=_EPS)

    def _features(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Returns features `(B, H, N, 2 D)` in the dtype that ops compute in."""
        y = F.linear(widen(x), widen(weight), widen(bias))
        if self.feature_map == "joint":
            return torch.cat([2 * y, -2 * y], -1).softmax(-1)
        if self.feature_map == "separate":
            return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)
        return torch.cat([y - y.amax(-1, keepdim=True), y.amin(-1, keepdim=True) - y], -1).exp()
