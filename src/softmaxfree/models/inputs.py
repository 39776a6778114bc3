"""What a network takes: images of at least a minimal size, and masks of their padding."""

from collections.abc import Sequence

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.layers.padding import extents, zero_padding
from softmaxfree.ops import transforms

_CPU = torch.device("cpu")


@register_notrace_function
def check_image(x: Tensor, in_chans: int, min_img_size: int, no_mask: object = None) -> Tensor:
    """Returns `x`; raises InputError unless it is a batch of images that the model can take, without a mask."""
    if torch.compiler.is_exporting():
        return x
    if no_mask is not None:
        raise InputError(
            f"mask must be None or a bool tensor (B, height, width), got {type(no_mask).__name__}; "
            "a network traced by torch.fx takes none"
        )
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise InputError(f"x must be (B, {in_chans}, height, width), got {tuple(x.shape)}")
    if min(x.shape[-2:]) < min_img_size:
        raise InputError(f"x must be at least {min_img_size}x{min_img_size} pixels, got {tuple(x.shape[-2:])}")
    return x


def check_mask(mask: Tensor, x: Tensor, min_img_size: int, training: bool = False) -> tuple[Tensor, Tensor | None]:
    """Checks a mask and zeroes the padding.

    A mask on the CPU is checked there, and another device never waits for it. One on a device is asked about once; in
    training not even that: an image with a wrong mask becomes nan then. What a mask holds is not checked while
    compiling, exporting, or under `torch.func`.

    Args:
        mask: is to be `(B, height, width)` bool, True in a rectangle at the top left of each image; on the device of
            `x` or on the CPU.
        x: the images `(B, in_chans, height, width)`.
        min_img_size: least height and width of the rectangles, pixels.
        training: do not wait for the device.

    Returns:
        The images with zeros in the padding, and the mask on their device, or None if there is no padding.

    Raises:
        InputError: for another mask.
    """
    expected = (x.shape[0], *x.shape[-2:])
    if mask.dtype != torch.bool or mask.shape != expected:
        raise InputError(f"mask must be bool {expected}, got {mask.dtype} {tuple(mask.shape)}")
    if mask.device not in (x.device, _CPU):
        raise InputError(f"mask must be on the device of x, {x.device}, or on the CPU, got {mask.device}")
    own = mask.to(x.device, non_blocking=True)
    if torch.compiler.is_compiling() or transforms.at_work():
        return zero_padding(x, own), own
    facts = _facts(mask)
    if training and mask.device != _CPU:
        holes, valid, heights, widths = facts.unbind(1)
        wrong = (holes > 0) | (valid == 0) | (torch.minimum(heights, widths) < min_img_size)
        return zero_padding(x, own).masked_fill(wrong[:, None, None, None], torch.nan), own
    extent = []
    for i, (holes, valid, *size) in enumerate(facts.tolist()):
        if not valid:
            raise InputError(f"mask must be True somewhere in every image, is False all over image {i}")
        if holes:
            raise InputError(f"mask must be True in one rectangle at the top left of every image, is not in image {i}")
        if min(size) < min_img_size:
            raise InputError(
                f"mask must leave at least {min_img_size}x{min_img_size} pixels of every image, "
                f"leaves {size[0]}x{size[1]} of image {i}"
            )
        extent.append(tuple(size))
    return (x, None) if set(extent) <= {expected[1:]} else (zero_padding(x, own), own)


def _facts(mask: Tensor) -> Tensor:
    """Returns `(B, 4)`: the cells that differ from a rectangle at the top left, those valid, its height and width."""
    heights, widths = (size.unsqueeze(1) for size in extents(mask))
    rows = torch.arange(mask.shape[1], device=mask.device) < heights
    columns = torch.arange(mask.shape[2], device=mask.device) < widths
    holes = (mask != rows.unsqueeze(2) & columns.unsqueeze(1)).sum((1, 2)).unsqueeze(1)
    return torch.cat((holes, mask.sum((1, 2)).unsqueeze(1), heights, widths), 1)


def mask_of_sizes(sizes: Sequence[tuple[int, int]], height: int, width: int) -> Tensor:
    """Returns the mask `(B, height, width)`, on the CPU, of images of these heights and widths, padded to one size."""
    mask = torch.zeros(len(sizes), height, width, dtype=torch.bool)
    for own, (h, w) in zip(mask, sizes, strict=True):
        own[:h, :w] = True
    return mask
