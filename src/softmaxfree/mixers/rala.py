"""Rank-augmented linear attention (RALA, arXiv 2411.07635)."""

from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from softmaxfree.mixers.features import linear_attention, mask_logits
from softmaxfree.mixers.mixer import AbstractAttention, num_valid, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.rope import require_rope, rotate
from softmaxfree.ops.precision import full_precision, widen

_EPS = 1e-6  # of the mean weight, as in the released code


@register
class RankAugmentedAttention(AbstractAttention):
    """Linear attention in which each key has a weight of its own, which raises the rank of `sum_j k_j^T v_j`.

    With `phi = ELU + 1` the weight of key `j` is `alpha_j = N softmax_j(D^(-1/2) mean_i phi(q_i) . phi(k_j))`, and
    attention is that of `phi(q_i) . alpha_j phi(k_j)`, divided by its sum over `j`.

    The released code rotates `phi(q)` and `alpha phi(k)` by their places in the numerator alone (`rope="numerator"`);
    rows then sum to something else than 1. With `value_kernel=5` and `gate=True` this is the released module.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        rope: rotary position embedding: "none" or "numerator"; heads must then be a multiple of 4 wide.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "rala"
    source = "RALA, CVPR 2025"
    row_sum = 1.0

    def __init__(self, dim: int, num_heads: int, *, rope: Literal["none", "numerator"] = "none", **common: Any) -> None:
        super().__init__(dim, num_heads, **common)
        require_rope(rope, self.head_dim, ("none", "numerator"))
        self.rope = rope
        if rope != "none":
            self.row_sum = None  # type: ignore[misc]  the denominator is that of other weights

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            queries, keys = F.elu(widen(q)) + 1, F.elu(widen(k)) + 1
            count = num_valid(mask, keys)
            valid_queries = queries if mask is None else zero_tokens(queries, mask)
            logits = keys @ (valid_queries.sum(2, keepdim=True) / count).mT * self.scale
            keys = keys * (count * mask_logits(logits, mask).softmax(2))
            eps = _EPS * count
            turn = None if self.rope == "none" else partial(rotate, grid=grid)
            return linear_attention(queries, keys, v, mask, eps=eps, turn=turn)
