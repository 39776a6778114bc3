"""Norm-aware linear attention (NaLaFormer, arXiv 2506.21137)."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softmaxfree.mixers.features import by_sign, linear_attention
from softmaxfree.mixers.mixer import AbstractAttention, num_valid, require_flag
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.rope import require_rope, rotate
from softmaxfree.ops.precision import full_precision, widen

_EPS = 1e-6  # of the mean weight, as in the released code
_POWER, _SHIFT = 3, 0.5
_LEAST_NORM = 1e-12  # a query of zeros has no direction; the released code makes NaN of it


@register
class NormAwareAttention(AbstractAttention):
    """Linear attention whose rows grow sharper with the norm of the query.

    Features of a query are `[relu(d)^p, relu(-d)^p]` of its direction `d = q / |q|` with `p = 3 (0.5 + tanh |q|)`, of a
    key `[relu(k^3), relu(-k^3)]`; all element-wise, with norm and power of each head. Attention is their product,
    divided by its sum. Weights are positive or 0. A query of zeros gives zeros.

    This is the released code, which belongs to the third version of the paper; the paper's formula has cosine and sine
    of the direction in place of the two signs. The code rotates each half of the features by their places in the
    numerator alone (`rope="numerator"`); rows then sum to something else than 1. With `value_kernel=5`,
    `out_norm=True` and `gate=True` this is the released module.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        rope: rotary position embedding: "none" or "numerator"; heads must then be a multiple of 4 wide.
        out_norm: whether a LayerNorm follows, before the gate.
        gate: whether the result is multiplied by the SiLU of a linear function of the tokens.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "nala"
    source = "NaLaFormer, ICML 2026"
    row_sum = 1.0

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        rope: Literal["none", "numerator"] = "none",
        out_norm: bool = False,
        gate: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, gate=gate, **common)
        require_rope(rope, self.head_dim, ("none", "numerator"))
        require_flag("out_norm", out_norm)
        self.rope = rope
        if rope != "none":
            self.row_sum = None  # type: ignore[misc]  the denominator is that of other weights
        if out_norm:
            self.out_norm = nn.LayerNorm(dim, device=common.get("device"), dtype=common.get("dtype"))
        if self.gate is not None:
            self.gate = nn.Sequential(self.gate, nn.SiLU())

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            queries = widen(q)
            norm = torch.linalg.vector_norm(queries, dim=-1, keepdim=True)
            direction = queries / norm.clamp(min=_LEAST_NORM)
            queries = by_sign(direction) ** (_POWER * (_SHIFT + norm.tanh()))
            keys = by_sign(widen(k) ** 3)
            eps = _EPS * num_valid(mask, keys)
            turn = None if self.rope == "none" else partial(rotate, grid=grid, parts=2)
            return linear_attention(queries, keys, v, mask, eps=eps, turn=turn)
