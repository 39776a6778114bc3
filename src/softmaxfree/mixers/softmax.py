"""Softmax attention, quadratic in the tokens: what all others are compared with (Vaswani et al., 2017)."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from softmaxfree.mixers.mixer import AbstractAttention, valid_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.ops import transforms


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
    """Returns `softmax(q k^T / sqrt(D)) v`, `(B, H, N, E)`, over the keys that are `valid (B, M)`."""
    keys = None if valid is None else valid[:, None, None]
    if transforms.at_work():
        with sdpa_kernel(SDPBackend.MATH):  # the others have no forward-mode derivative
            return F.scaled_dot_product_attention(q, k, v, keys)
    return F.scaled_dot_product_attention(q, k, v, keys)


@register
class SoftmaxAttention(AbstractAttention):
    """`softmax(q k^T / sqrt(D)) v` by torch's `scaled_dot_product_attention`. Arguments: see `AbstractAttention`."""

    name = "softmax"
    source = "Vaswani et al., NeurIPS 2017"
    linear = False
    row_sum = 1.0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        return softmax_attention(q, k, v, None if mask is None else valid_tokens(mask, k.shape[2]))
