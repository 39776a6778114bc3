"""Kernel attention with relative positions by FFT (NPRF, NeurIPS 2021), on two axes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from softmaxfree.arguments import require_whole, require_whole_numbers
from softmaxfree.layers.padding import extents
from softmaxfree.mixers.mixer import AbstractAttention, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen


@register
class RelativeKernelAttention(AbstractAttention):
    """Weights `exp(b[j - i]) phi(q_i) phi(k_j)^T` over their sum, with `b` by the offset of key from query.

    `phi(x) = exp(W x / |x| - 1/2) / sqrt(F)` with fixed Gaussian `W (F, D)`, so that without `b` the weights are those
    of softmax for normalised queries and keys, but for the error of `F` random features (arXiv 2106.12566). Sums over
    all offsets are correlations on the grid, made by FFT: time grows as `N ln N`, memory as `N F (D + 1)` for each head
    and image, far more than that of other linear mixers. The paper has sequences; the offsets on two axes are ours.

    `b` is stored for one grid. On another it is resampled, so that the farthest offsets of both grids have the same
    `b`; with a mask for the valid grid of each image.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        num_features: `F`.
        bias_grid: rows and columns of the grid that `b` is stored for; a sequence is a grid of one row.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "rpe_kernel"
    source = "NPRF, NeurIPS 2021"
    prefix = False  # a class token has no offset
    row_sum = 1.0

    projection_matrix: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_features: int = 32,
        bias_grid: Sequence[int] = (14, 14),
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, **common)
        require_whole("num_features", num_features, 1)
        require_whole_numbers("bias_grid", bias_grid, 2, 1)
        factory: dict[str, Any] = {key: common.get(key) for key in ("device", "dtype")}
        self.num_features, self.bias_grid = num_features, tuple(bias_grid)
        rows, columns = self.bias_grid
        self.bias = nn.Parameter(torch.empty(num_heads, 2 * rows - 1, 2 * columns - 1, **factory))
        self.register_buffer("projection_matrix", torch.randn(num_features, self.head_dim, **factory))
        trunc_normal_(self.bias, std=0.02)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        with full_precision(v):
            values = F.pad(widen(v), (0, 1), value=1.0)  # the denominator is the sum of the weights
            if mask is not None:
                values = zero_tokens(values, mask)
            sums = self._features(k).unsqueeze(-1) * values.unsqueeze(-2)
            sums = self._correlated(sums.flatten(3), grid, mask).unflatten(-1, (self.num_features, -1))
            out = (self._features(q).unsqueeze(-2) @ sums).squeeze(-2)
            total = out[..., -1:].clamp(min=torch.finfo(out.dtype).tiny)  # of padding alone it is 0
            return (out[..., :-1] / total).to(v.dtype)

    def _features(self, x: Tensor) -> Tensor:
        logits = F.normalize(widen(x), dim=-1) @ widen(self.projection_matrix).T
        return torch.exp(logits - 0.5) * self.num_features**-0.5

    def _correlated(self, x: Tensor, grid: list[int], mask: Tensor | None) -> Tensor:
        """Returns `sum_j exp(b[j - i]) x_j` for each token `i` of `x (B, H, N, E)`."""
        if not torch.compiler.is_compiling() and x.numel() == 0:
            return x  # MKL has no transform of nothing
        rows, columns = [1, *grid][-2:]
        sizes = [torch.full((1,), n, device=x.device) for n in (rows, columns)]
        if mask is not None:
            sizes = [torch.ones_like(mask.flatten(1)[:, 0], dtype=torch.long), *extents(mask)][-2:]
        kernel = _resampled(sizes[0], rows, self.bias_grid[0], x.dtype).unsqueeze(1) @ widen(self.bias)
        kernel = kernel @ _resampled(sizes[1], columns, self.bias_grid[1], x.dtype).mT.unsqueeze(1)
        kernel = torch.exp(kernel - kernel.detach().amax((-2, -1), keepdim=True))  # the largest cancels
        # turned round, as a product of spectra is a convolution; offset 0 first, and sizes of even numbers, whose
        # transforms are faster
        kernel = F.pad(kernel.flip(-2, -1), (1, 0, 1, 0)).unsqueeze(2)
        kernel = _second_half_first(_second_half_first(kernel, rows, -2), columns, -1)
        image = x.transpose(2, 3).unflatten(-1, (rows, columns))
        if torch.compiler.is_exporting():  # onnxruntime has no inverse transform of half a spectrum
            spectrum = torch.fft.fft2(F.pad(image, (0, columns, 0, rows))) * torch.fft.fft2(kernel)
            return torch.fft.ifft2(spectrum).real[..., :rows, :columns].flatten(3).transpose(2, 3)
        size = [2 * rows, 2 * columns]
        spectrum = torch.fft.rfft2(image, s=size) * torch.fft.rfft2(kernel)
        return torch.fft.irfft2(spectrum, s=size)[..., :rows, :columns].flatten(3).transpose(2, 3)


def _second_half_first(x: Tensor, half: int, axis: int) -> Tensor:
    """Returns `torch.fft.ifftshift` of an axis of `2 half` cells, which ONNX does not have."""
    return torch.cat([x.narrow(axis, half, half), x.narrow(axis, 0, half)], axis)


def _resampled(sizes: Tensor, target: int, source: int, dtype: torch.dtype) -> Tensor:
    """Returns matrices of linear interpolation between offsets.

    Args:
        sizes: `(B,)` tokens along one axis.
        target: the most of them.
        source: those that the table is stored for.
        dtype: of the matrices.

    Returns:
        `(B, 2 target - 1, 2 source - 1)`; offsets that an image does not have get that of its farthest.
    """
    offsets = torch.arange(1 - target, target, device=sizes.device, dtype=dtype)
    places = offsets * ((source - 1) / (sizes - 1).clamp(min=1).to(dtype)).unsqueeze(1) + (source - 1)
    places = places.clamp(0, 2 * source - 2).unsqueeze(-1)
    return (1 - (places - torch.arange(2 * source - 1, device=sizes.device)).abs()).clamp(min=0)
