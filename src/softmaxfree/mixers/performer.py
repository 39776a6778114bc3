"""Performer: random features whose inner products estimate the softmax kernel (Choromanski et al., 2021)."""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.types import Device

from softmaxfree.arguments import require, require_whole
from softmaxfree.mixers.features import linear_attention, mask_logits
from softmaxfree.mixers.mixer import AbstractAttention, require_flag
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen

Kernel = Literal["exp", "relu"]
_TINY = 1e-30  # for an image of padding alone


@register
class PerformerAttention(AbstractAttention):
    """Linear attention with random features of `x' = D^(-1/4) x`, FAVOR+ of the paper.

    `"exp"`: `phi(x) = M^(-1/2) (exp(w_r . x' - |x'|^2 / 2 - c) + 1e-4)`, where `c` is the greatest `w_r . x'`: of the
    token for a query, of all valid tokens of the head for keys. `"relu"`: `phi(x) = relu(w_r . x') + 1e-3`.

    The `w_r` are random, orthogonal in blocks of `D`, as long as Gaussian vectors, and kept with the weights as the
    buffer `projection_matrix (M, D)`; they are not drawn again in training. Unlike the released ones they point in all
    directions alike: a QR decomposition alone prefers some signs.

    The estimate is rough where queries and keys are long: its variance grows as `exp(|q + k|^2)`.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        num_features: `M`; `D ln D` when None.
        kernel: `"exp"` for the softmax kernel, or `"relu"`.
        constant_maximum: whether gradients take `c` for a constant, as released, though `phi` depends on it.
        device: of the weights.
        dtype: of the weights.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "performer"
    source = "Performer, ICLR 2021"
    approximates = "softmax"
    row_sum = 1.0
    projection_matrix: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_features: int | None = None,
        kernel: Kernel = "exp",
        constant_maximum: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, device=device, dtype=dtype, **common)
        if num_features is None:
            num_features = max(1, int(self.head_dim * math.log(self.head_dim)))
        require_whole("num_features", num_features, 1)
        require(kernel in get_args(Kernel), "kernel", kernel, f"one of {', '.join(get_args(Kernel))}")
        require_flag("constant_maximum", constant_maximum)
        self.num_features, self.kernel, self.constant_maximum = num_features, kernel, constant_maximum
        directions = orthogonal_features(num_features, self.head_dim, device)
        self.register_buffer("projection_matrix", directions.to(self.qkv.weight.dtype))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            q, k = (widen(x) * self.head_dim**-0.25 for x in (q, k))
            directions = self.projection_matrix.to(q.dtype).mT
            along_q, along_k = q @ directions, k @ directions
            if self.kernel == "relu":
                q, k = F.relu(along_q) + 1e-3, F.relu(along_k) + 1e-3
            else:
                # one maximum for all keys, each of which it would weight anew; of a query the factor cancels
                q, k = self._exponential(q, along_q, -1), self._exponential(k, mask_logits(along_k, mask), (-2, -1))
            return linear_attention(q, k, v, mask, least=_TINY)

    def _exponential(self, x: Tensor, along: Tensor, axes: int | tuple[int, int]) -> Tensor:
        """Returns the features `(B, H, N, M)` of points whose products with the directions are `along`."""
        greatest = along.amax(axes, keepdim=True)
        if self.constant_maximum:
            greatest = greatest.detach()
        exponent = along - x.square().sum(-1, keepdim=True) / 2 - greatest
        return (exponent.exp() + 1e-4) * self.num_features**-0.5


def orthogonal_features(count: int, dim: int, device: Device = None) -> Tensor:
    """Draws random directions for the features of a kernel.

    Args:
        count: how many.
        dim: their width.
        device: of the result.

    Returns:
        `(count, dim)` float32: each `dim` rows are orthogonal, and each row is as long as a Gaussian vector.
    """
    factory: dict[str, Any] = {"device": device, "dtype": torch.float32}
    q, r = torch.linalg.qr(torch.randn(-(-count // dim), dim, dim, **factory))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # else the directions are not uniform
    return q.mT.flatten(0, 1)[:count] * torch.randn(count, dim, **factory).norm(dim=-1, keepdim=True)
