"""Magnitude-aware linear attention (MALA, arXiv 2507.00698)."""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from softmaxfree.mixers.mixer import AbstractAttention, num_valid, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.rope import require_rope, rotate
from softmaxfree.ops.precision import full_precision, widen

_EPS = 1e-6  # of the released code


@register
class MagnitudeAwareAttention(AbstractAttention):
    """Linear attention whose rows grow sharper as the query grows, as those of softmax do.

    With `s_ij = D^(-1/2) phi(q_i) . phi(k_j) / N`, `phi = ELU + 1` and `z_i = sum_j s_ij` the weights are
    `s_ij (1 + 1 / z_i) - z_i / N`: scaled and shifted instead of divided. Each row sums to 1; some weights are
    negative.

    The released code rotates `phi(q)` and `phi(k)` by their places in the sum of the values alone and not in `z`
    (`rope="numerator"`), so that rows sum to anything, on large grids to less than 0; a norm and the gate make up for
    it. `rope="both"` rotates in `z` too: rows sum to 1 again, but `z` may come close to 0 and the weights grow large.
    With `value_kernel=5` and `gate=True` this is the released module.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        rope: rotary position embedding: "none", "numerator" or "both"; heads must then be a multiple of 4 wide.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "mala"
    source = "MALA, ICCV 2025"
    row_sum = 1.0

    def __init__(
        self, dim: int, num_heads: int, *, rope: Literal["none", "numerator", "both"] = "none", **common: Any
    ) -> None:
        super().__init__(dim, num_heads, **common)
        require_rope(rope, self.head_dim, ("none", "numerator", "both"))
        self.rope = rope
        if rope != "none":
            self.row_sum = None  # type: ignore[misc]  or only up to how far z is from 0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(q):
            queries, keys, values = (F.elu(widen(q)) + 1) * self.scale, F.elu(widen(k)) + 1, widen(v)
            if mask is not None:
                keys, values = zero_tokens(keys, mask), zero_tokens(values, mask)
            count = num_valid(mask, keys)
            turned = (queries, keys) if self.rope == "none" else (rotate(queries, grid), rotate(keys, grid))
            summed = turned if self.rope == "both" else (queries, keys)
            z = summed[0] @ (summed[1].sum(2, keepdim=True) / count).mT
            weighted = turned[0] @ (turned[1].mT @ (values / count))
            out = weighted * (1 + 1 / (z + _EPS)) - z * (values.sum(2, keepdim=True) / count)
        return out.to(v.dtype)
