"""Settings that follow from the data where they are "auto"."""

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["batch_size", "image_size"]

_STEP = 32  # image sizes are multiples of it: the coarsest stride


def batch_size(num_images: int, least: int = 8, most: int = 64) -> int:
    """Return the largest power of two that gives an epoch eight steps or more.

    Args:
        num_images: to train on.
        least: result at least, if there are as many images.
        most: result at most.

    Returns:
        Images a step.
    """
    wanted = max(num_images // 8, 1)
    return min(max(2 ** int(math.log2(wanted)), least), most, max(num_images, 1))


def image_size(short_sides: Sequence[int], least: int = 64, most: int = 224) -> int:
    """Return the side for the network: the median of the shorter sides, as a multiple of 32.

    Args:
        short_sides: of images as they are shown, pixels.
        least: result at least.
        most: result at most.

    Returns:
        Pixels.
    """
    return min(max(round(median(short_sides) / _STEP) * _STEP, least), most)
