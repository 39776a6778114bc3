"""Nystromformer: softmax attention through landmarks (Xiong et al., 2021)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_odd, require_whole
from softmaxfree.mixers.mixer import AbstractAttention, require_flag, valid_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.softmax import softmax_attention
from softmaxfree.mixers.windows import window_means
from softmaxfree.ops.precision import full_precision, widen


@register
class NystromAttention(AbstractAttention):
    """`s(q l_k^T) A+ s(l_q k^T) v`, `A = s(l_q l_k^T)`, `s` the softmax of rows over `sqrt(D)`.

    The landmarks `l_q`, `l_k` are means of windows of the queries and keys on the image's own grid, at most
    `landmark_grid` of them; for a sequence those are the segments of the paper. `A+` is found by an iteration of third
    order, from `A^T / (|A|_1 |A|_inf)` of each matrix; 6 steps, as released, are far from the inverse. Gradients pass
    through the steps. The released code starts from norms that are the greatest of the whole batch, so that images
    change each other.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        ratio: side of the windows.
        landmark_grid: most landmarks along each axis of the grid, two numbers, or one for sequences; more are averaged.
        iterations: steps towards the inverse.
        shared_start: whether the heads of an image start from the same norms, the greatest of theirs: what the released
            code does with one image.
        residual_kernel: odd side of a convolution of the values that is added to the result, one filter for each head
            without bias, as released; 0 for none.
        device: of the weights.
        dtype: of the weights.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "nystrom"
    source = "Nystromformer, AAAI 2021"
    approximates = "softmax"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        ratio: int = 1,
        landmark_grid: Sequence[int] = (8, 8),
        iterations: int = 6,
        shared_start: bool = False,
        residual_kernel: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, device=device, dtype=dtype, **common)
        require_whole("iterations", iterations, 1)
        require_flag("shared_start", shared_start)
        require_odd("residual_kernel", residual_kernel)
        self.landmarks = window_means(ratio, landmark_grid)
        self.ratio, self.landmark_grid, self.iterations = ratio, tuple(landmark_grid), iterations
        self.shared_start, self.residual_kernel = shared_start, residual_kernel
        self.ndims = (len(landmark_grid),)
        if residual_kernel:
            require(self.value_conv is None, "value_kernel", self.value_kernel, "0 with residual_kernel")
            conv = nn.Conv2d if len(landmark_grid) == 2 else nn.Conv1d
            self.value_conv = conv(
                num_heads,
                num_heads,
                residual_kernel,
                padding="same",
                groups=num_heads,
                bias=False,
                device=device,
                dtype=dtype,
            )

    @property
    def min_grid(self) -> int:
        """Least number of tokens along each axis: one window."""
        return self.ratio

    def value_filters(self) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias of `value_conv` with a filter for each channel."""
        weight, bias = super().value_filters()
        return (weight.repeat_interleave(self.head_dim, 0) if self.residual_kernel else weight), bias

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            dtype, prefix = v.dtype, k.shape[2] - math.prod(grid)
            q, k, v = widen(q), widen(k), widen(v)
            of_queries, of_keys = (self.landmarks(x[:, :, prefix:], grid, mask) for x in (q, k))
            valid = landmark = None
            if mask is not None:
                valid, landmark = valid_tokens(mask, k.shape[2]), self.landmarks.valid(mask)
            inverse = self.inverse(of_queries, of_keys, landmark)
            summary = inverse @ softmax_attention(of_queries, k, v, valid)
            return softmax_attention(q, of_keys, summary, landmark).to(dtype)

    def inverse(self, of_queries: Tensor, of_keys: Tensor, valid: Tensor | None) -> Tensor:
        """Returns the inverse `(B, H, M, M)` of the landmarks' attention, 0 for those that are not `valid (B, M)`."""
        logits = of_queries @ of_keys.mT * self.scale
        if valid is None:
            return pseudo_inverse(logits.softmax(-1), self.iterations, self.shared_start)
        unit = torch.eye(valid.shape[1], dtype=logits.dtype, device=logits.device)
        row, column = ~valid[:, None, :, None], ~valid[:, None, None]
        least = torch.finfo(logits.dtype).min
        matrix = torch.where(row, unit, logits.masked_fill(column, least).softmax(-1))  # beside, the norms stay
        return pseudo_inverse(matrix, self.iterations, self.shared_start).masked_fill(row | column, 0.0)


def pseudo_inverse(matrix: Tensor, iterations: int, shared_start: bool = False) -> Tensor:
    """Approximates the inverses of matrices by the iteration of the Nystromformer.

    Args:
        matrix: `(B, H, M, M)`, no negative element.
        iterations: how many steps.
        shared_start: whether the heads of an image start from the greatest of their norms.

    Returns:
        `(B, H, M, M)`.
    """
    axes = (-3, -2, -1) if shared_start else (-2, -1)
    columns, rows = (matrix.sum(axis, keepdim=True).amax(axes, keepdim=True) for axis in (-2, -1))
    z = matrix.mT / (columns * rows)
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ z
        z = z @ (13 * unit - product @ (15 * unit - product @ (7 * unit - product))) / 4
    return z
