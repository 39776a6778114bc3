"""Linear attention with the feature map ELU + 1 (Katharopoulos et al., 2020)."""

import torch.nn.functional as F
from torch import Tensor

from softmaxfree.mixers.features import linear_attention
from softmaxfree.mixers.mixer import AbstractAttention
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import widen


@register
class EluLinearAttention(AbstractAttention):
    """`phi(q) (phi(k)^T v) / (phi(q) sum_j phi(k_j) + 1e-6)` with `phi(x) = elu(x) + 1`, eq. 5 and 7 of the paper.

    Nothing is scaled by `D^(-1/2)`, as released. Arguments: see `AbstractAttention`.
    """

    name = "elu_linear"
    source = "Katharopoulos et al., ICML 2020"
    row_sum = 1.0

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        return linear_attention(F.elu(widen(q)) + 1, F.elu(widen(k)) + 1, v, mask, eps=1e-6)
