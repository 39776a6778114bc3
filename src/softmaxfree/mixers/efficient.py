"""Efficient attention: softmax over channels of the queries and over tokens of the keys (Shen et al., 2021)."""

from torch import Tensor

from softmaxfree.mixers.features import mask_logits
from softmaxfree.mixers.mixer import AbstractAttention
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen


@register
class EfficientAttention(AbstractAttention):
    """`softmax_D(q) (softmax_N(k)^T v)`, the softmax normalization of the paper.

    Rows sum to 1 without a division. The released module adds its input; here the block does. Arguments: see
    `AbstractAttention`.
    """

    name = "efficient"
    source = "Shen et al., WACV 2021"
    row_sum = 1.0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            k = mask_logits(widen(k), mask).softmax(-2)
            return (widen(q).softmax(-1) @ (k.transpose(-1, -2) @ widen(v))).to(v.dtype)
