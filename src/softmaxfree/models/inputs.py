"""What a network takes: images of at least a minimal size, and masks of their padding."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.layers.padding import extents


@register_notrace_function
def check_image(x: Tensor, in_chans: int, min_img_size: int, no_mask: object = None) -> Tensor:
    """Returns `x`; raises ValueError unless it is a batch of images that the model can take, without a mask."""
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


def check_mask(mask: Tensor, x: Tensor, min_img_size: int) -> bool:
    """Checks a mask, asking the device once; not what it holds while compiling or exporting.

    Args:
        mask: is to be `(B, height, width)` bool, True in a rectangle at the top left of each image.
        x: the images `(B, in_chans, height, width)`.
        min_img_size: least height and width of the rectangles, pixels.

    Returns:
        Whether there is padding.

    Raises:
        ValueError: for another mask.
    """
    expected = (x.shape[0], *x.shape[-2:])
    if mask.dtype != torch.bool or mask.shape != expected:
        raise InputError(f"mask must be bool {expected}, got {mask.dtype} {tuple(mask.shape)}")
    if mask.device != x.device:
        raise InputError(f"mask must be on the device of x, {x.device}, got {mask.device}")
    if torch.compiler.is_compiling():
        return True
    heights, widths = (size.unsqueeze(1) for size in extents(mask))
    rows = torch.arange(mask.shape[1], device=mask.device) < heights
    columns = torch.arange(mask.shape[2], device=mask.device) < widths
    holes = (mask != rows.unsqueeze(2) & columns.unsqueeze(1)).sum((1, 2)).unsqueeze(1)
    facts = torch.cat((holes, mask.sum((1, 2)).unsqueeze(1), heights, widths), 1).tolist()
    for i, (wrong, valid, height, width) in enumerate(facts):
        if not valid:
            raise InputError(f"mask must be True somewhere in every image, is False all over image {i}")
        if wrong:
            raise InputError(f"mask must be True in one rectangle at the top left of every image, is not in image {i}")
        if min(height, width) < min_img_size:
            raise InputError(
                f"mask must leave at least {min_img_size}x{min_img_size} pixels of every image, "
                f"leaves {height}x{width} of image {i}"
            )
    return any((height, width) != expected[1:] for _, _, height, width in facts)
