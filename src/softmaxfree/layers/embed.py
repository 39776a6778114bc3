"""From pixels to tokens: overlapping stem, downsampling between stages, learned position tables."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import (
    ConvNormAct,
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
    EvoNorm2dS0,
    EvoNorm2dS0a,
    EvoNorm2dS1,
    EvoNorm2dS1a,
    EvoNorm2dS2,
    EvoNorm2dS2a,
    register_notrace_module,
    trunc_normal_,
)
from torch import Tensor, nn
from torch.fx import Proxy
from torch.types import Device

from softmaxfree.arguments import require, require_odd, require_whole, require_whole_numbers
from softmaxfree.layers.contrast import local_contrast
from softmaxfree.layers.inference import is_fixed_norm, is_plain_conv, is_plain_inference, is_seen
from softmaxfree.layers.norm import batch_norm
from softmaxfree.layers.padding import at_stride, extents
from softmaxfree.ops.precision import full_precision, widen

_EVO_NORMS = (
    EvoNorm2dS0,
    EvoNorm2dS0a,
    EvoNorm2dS1,
    EvoNorm2dS1a,
    EvoNorm2dS2,
    EvoNorm2dS2a,
    EvoNorm2dB0,
    EvoNorm2dB1,
    EvoNorm2dB2,
)
STEM_NORMS = ("batchnorm", *(norm.__name__.lower().replace("2d", "") for norm in _EVO_NORMS))
"""Norms that `stem` takes."""

# of the largest map between the layers that inference holds at once
_CPU_STRIP_BYTES, _STRIP_BYTES = 1 << 26, 1 << 30


class ConvEmbedding(nn.Sequential):
    """Convolutions with norm, each followed by a ReLU; each sees zeros in the padding, as at an image's border.

    In training the norm takes its statistics over the valid cells. EvoNorm is norm and activation in one, and refuses a
    mask.

    Args:
        *layers: what to apply in turn.
    """

    def __init__(self, *layers: ConvNormAct) -> None:
        super().__init__(*layers)
        self.stride = math.prod(layer.conv.stride[0] for layer in layers)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embeds.

        Args:
            x: `(B, C_in, h, w)`, zero where `mask` is False.
            mask: `(B, h, w)` bool, True where a cell is valid.

        Returns:
            `(B, C, ~h/stride, ~w/stride)`, zero in the padding.
        """
        in_strips = is_plain_inference() and not self.training and not isinstance(x, Proxy)
        if in_strips and (strips := _num_strips(self, x)) > 1:
            return self._in_strips(x, mask, strips)
        for layer in _layers_of(self):
            x, mask = _convolved(layer.conv, x), at_stride(mask, layer.conv.stride[0])
            if isinstance(layer.bn, _EVO_NORMS):
                require(mask is None, "mask", "one", "None: EvoNorm takes statistics over the padding, too")
                x = layer.bn(x)
            else:
                x = F.relu(batch_norm(layer.bn, x, mask), inplace=True)
        return x

    def _in_strips(self, x: Tensor, mask: Tensor | None, strips: int) -> Tensor:
        """Embeds without all maps between the layers at once: strips of rows, each with the rows that it sees."""
        layers, levels, masks = _layers_of(self), _levels(self, x), [mask]
        for layer in layers:
            masks.append(at_stride(masks[-1], layer.conv.stride[0]))
        height = levels[-1][0]
        rows, out = -(-height // strips), x
        for top in range(0, height, rows):
            spans = [(top, min(top + rows, height))]
            for layer, (size, _) in zip(reversed(layers), reversed(levels[:-1]), strict=True):
                first, last = spans[0]
                step, around = layer.conv.stride[0], layer.conv.padding[0]
                spans.insert(0, (max(first * step - around, 0), min((last - 1) * step + around + 1, size)))
            strip = x[:, :, slice(*spans[0])]
            for i, layer in enumerate(layers):
                first, last = (end * layer.conv.stride[0] for end in (spans[i + 1][0], spans[i + 1][1] - 1))
                around = layer.conv.padding[0]
                beyond = spans[i][0] - first + around, last + around + 1 - spans[i][1]  # rows outside of the image
                strip = F.pad(strip, (0, 0, *beyond)) if any(beyond) else strip
                strip = F.conv2d(strip, layer.conv.weight, layer.conv.bias, layer.conv.stride, (0, around))
                inside = masks[i + 1]
                strip = batch_norm(layer.bn, strip, None if inside is None else inside[:, slice(*spans[i + 1])])
                strip = F.relu(strip, inplace=True)
            if top == 0:
                out = torch.empty_like(strip[:, :, :1].expand(-1, -1, height, -1))
            out[:, :, top : top + rows] = strip
        return out


class ContrastEmbedding(ConvEmbedding):
    """A stem that also sees the local contrast of the image, in as many further channels, see `local_contrast`.

    Args:
        *layers: what to apply in turn, to twice as many channels as the image has.
        window: side of the surroundings, pixels; odd.
    """

    def __init__(self, *layers: ConvNormAct, window: int) -> None:
        super().__init__(*layers)
        self.window = window

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embeds, see `ConvEmbedding`."""
        return super().forward(torch.cat((x, local_contrast(x, self.window, mask)), 1), mask)


def _layers_of(embedding: nn.Module) -> list[ConvNormAct]:
    return list(cast(Iterable[ConvNormAct], embedding))


def _levels(embedding: nn.Module, x: Tensor) -> list[torch.Size]:
    """Height and width before the first layer and after each."""
    levels = [x.shape[-2:]]
    for layer in _layers_of(embedding):
        levels.append(torch.Size(-(-size // layer.conv.stride[0]) for size in levels[-1]))
    return levels


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolves; what is learned from a narrow map in float32 on a CPU, also under autocast.

    oneDNN's AMX kernels leave the gradient of those columns of the filter that see padding alone as it was in memory.
    """
    learned = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and not isinstance(x, Proxy)
    if learned and x.device.type == "cpu" and is_plain_conv(conv) and x.shape[-1] <= conv.kernel_size[1] // 2:
        with full_precision(x):
            return conv(x.to(conv.weight.dtype))
    return conv(x)


def _num_strips(embedding: nn.Module, x: Tensor) -> int:
    """In how many strips inference is done; 1 where a layer is another one than `stem` and `downsample` make."""
    layers = _layers_of(embedding)
    if not all(is_plain_conv(layer.conv) and is_fixed_norm(layer.bn) for layer in layers):
        return 1
    if is_seen(*(part for layer in layers for part in (layer.conv, layer.bn))):
        return 1
    sizes = [
        level.numel() * layer.conv.out_channels for level, layer in zip(_levels(embedding, x)[1:], layers, strict=True)
    ]
    most = _CPU_STRIP_BYTES if x.device.type == "cpu" else _STRIP_BYTES
    return -(-len(x) * max(sizes) * x.element_size() // most)


def _layer(in_dim: int, dim: int, stride: int, norm: str = "batchnorm", **factory: Any) -> ConvNormAct:
    # without timm's activation, which torch's SyncBatchNorm.convert_sync_batchnorm would drop with the norm
    evo = norm != "batchnorm"
    return ConvNormAct(in_dim, dim, 3, stride=stride, bias=True, apply_act=evo, norm_layer=norm, **factory)


def stem(
    in_chans: int,
    dim: int,
    *,
    width: int = 32,
    norm: str = "batchnorm",
    stride: int = 4,
    contrast_window: int = 0,
    **factory: Any,
) -> ConvEmbedding:
    """Makes three 3x3 convolutions of strides 2, 1, 2, or 2, 2, 2, each with norm and activation.

    Args:
        in_chans: channels of the image.
        dim: channels of the result.
        width: channels between.
        norm: "batchnorm", with a ReLU; or "evonorms0", "evonormb0" or another of timm's EvoNorms (arXiv 2004.02967),
            norm and activation in one. They take statistics over the whole map, so that no image may be padded.
        stride: of all together, 4 or 8.
        contrast_window: odd side of the window of `ContrastEmbedding`, 3 pixels or more; 0: none.
        **factory: device and dtype of the weights.

    Returns:
        Maps `(B, in_chans, h, w)` to `(B, dim, ~h/stride, ~w/stride)`.

    Raises:
        InputError: for an argument out of range.
    """
    for name, given in (("in_chans", in_chans), ("dim", dim), ("width", width)):
        require_whole(name, given, 1)
    require(norm in STEM_NORMS, "stem_norm", norm, f"one of {', '.join(STEM_NORMS)}")
    grouped = norm.startswith("evonorms")  # in groups of 1 / 32 of the channels
    require(not grouped or dim % 32 == width % 32 == 0, "stem_norm", norm, f"for a multiple of 32 channels, not {dim}")
    require(type(stride) is int and stride in (4, 8), "stem_stride", stride, "4 or 8")
    require_odd("contrast_window", contrast_window, 3)
    layers = (
        _layer(in_chans * (2 if contrast_window else 1), width, 2, norm, **factory),
        _layer(width, width, stride // 4, norm, **factory),
        _layer(width, dim, 2, norm, **factory),
    )
    return ContrastEmbedding(*layers, window=contrast_window) if contrast_window else ConvEmbedding(*layers)


def downsample(in_dim: int, dim: int, *, stride: int = 2, **factory: Any) -> ConvEmbedding:
    """Returns one 3x3 conv-BN-ReLU: `(B, in_dim, Y, X)` to `(B, dim, ~Y/stride, ~X/stride)`."""
    for name, given in (("in_dim", in_dim), ("dim", dim), ("stride", stride)):
        require_whole(name, given, 1)
    return ConvEmbedding(_layer(in_dim, dim, stride, **factory))


def feature_map(tokens: Tensor, grid: list[int]) -> Tensor:
    """Returns tokens `(B, N, C)`, row-major on the grid, as `(B, C, *grid)`: a view, channels last in memory."""
    # transposed first, a single image gets strides that oneDNN does not take for channels last, and reorders twice
    return tokens.unflatten(1, grid).movedim(-1, 1)


@register_notrace_module
class PositionTable(nn.Module):
    """Learned position embedding on a grid, bilinearly resampled where the token grid has another size.

    Args:
        dim: channels `C`.
        grid: rows and columns `(Y, X)` of the stored table.
        device: of the table.
        dtype: of the table.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        require_whole("dim", dim, 1)
        require_whole_numbers("grid", grid, 2, 1)
        self.grid = tuple(grid)
        self.table = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table from a truncated normal of deviation 0.02."""
        trunc_normal_(self.table, std=0.02)

    def forward(self, height: int, width: int, mask: Tensor | None = None) -> Tensor:
        """Looks the positions up.

        Args:
            height: rows of the grid.
            width: columns of the grid.
            mask: `(B, height, width)` bool: the table is resampled to the valid rectangle of each image.

        Returns:
            `(1, height * width, C)`, or `(B, height * width, C)` with a mask; arbitrary in the padding.
        """
        if mask is not None:
            return self._resample_each(mask)
        if torch.compiler.is_exporting():
            return self.resample(height, width)  # a shortcut for equal sizes would pin the exported size
        return self.table if (height, width) == self.grid else self.resample(height, width)

    def resample(self, height: int, width: int) -> Tensor:
        """Returns the table, interpolated to `height x width` in float32 or wider."""
        table = widen(self.table).view(1, self.grid[0], self.grid[1], -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=[height, width], mode="bilinear", align_corners=False)
        return table.flatten(2).transpose(1, 2).to(self.table.dtype)

    def _resample_each(self, mask: Tensor) -> Tensor:
        """Does the same as `resample` for each image's own size, without asking the device for it."""
        rows, columns = extents(mask)
        with full_precision(self.table):
            table = widen(self.table).view(self.grid[0], -1)
            table = resize_matrix(rows, mask.shape[1], self.grid[0], table.dtype) @ table
            table = table.unflatten(-1, (self.grid[1], -1))
            table = resize_matrix(columns, mask.shape[2], self.grid[1], table.dtype).unsqueeze(1) @ table
        return table.flatten(1, 2).to(self.table.dtype)


def resize_matrix(sizes: Tensor, target: int, source: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the matrices of linear interpolation (without aligned corners) to sizes that differ.

    Args:
        sizes: `(B,)` cells wanted.
        target: rows of the matrices, at least the largest of `sizes`; those beyond an image's size are arbitrary.
        source: cells given.
        dtype: of the matrices.

    Returns:
        `(B, target, source)`.
    """
    step = source / sizes.unsqueeze(1).to(dtype)
    place = torch.arange(target, device=sizes.device, dtype=dtype).add(0.5) * step - 0.5
    place = place.clamp(0, source - 1).unsqueeze(-1)
    return (1 - (place - torch.arange(source, device=sizes.device)).abs()).clamp_min(0)
