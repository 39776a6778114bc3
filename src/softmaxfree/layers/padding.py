"""Padding masks: bool, True where a cell is valid; of images the valid cells are a rectangle at the top left.

A module takes the mask of its input's grid, `(B, Y, X)` (`(B, N)` for sequences). All else that it needs is a slice:
a convolution of stride `s` makes `ceil(n / s)` cells of `n`, as the slice `::s` does; a window of `r` tokens is full
where its last token is valid, which is the slice `r - 1::r`.
"""

from torch import Tensor

from softmaxfree.ops.precision import compute_dtype


def at_stride(mask: Tensor | None, stride: int) -> Tensor | None:
    """Returns the mask of what a padded convolution of this stride makes of a grid, `(B, ~Y/stride, ~X/stride)`."""
    if mask is None:
        return None
    return mask[:, ::stride, ::stride]


def extents(mask: Tensor) -> list[Tensor]:
    """Returns the valid size of each image along each axis of the mask's grid, `(B,)` int64 each."""
    if mask.ndim == 2:
        return [mask.sum(1)]
    return [mask[:, :, 0].sum(1), mask[:, 0].sum(1)]


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the map `(B, C, Y, X)` with zeros, also for NaN, where `mask (B, Y, X)` is False."""
    return x.masked_fill(~mask.unsqueeze(1), 0.0)


def valid_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean `(B, C)` over the valid cells of a map `(B, C, Y, X)` that is zero elsewhere."""
    valid = mask.to(compute_dtype(x.dtype)).mean((1, 2)).reciprocal()
    return x.mean((-2, -1)) * valid.to(x.dtype).unsqueeze(1)
