"""Settings that follow from the data where they are "auto"."""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from typing import Any

import psutil
import torch

from softmaxfree.images import stored_shape

__all__ = ["batch_size", "fitting", "image_size", "num_workers", "sample_shapes", "total_memory"]

_STEP = 32  # image sizes are multiples of it: the coarsest stride
_BYTES_A_PIXEL = 3000  # that a training step keeps of an input pixel: of soft_tiny and its like in float32, rounded up
_PIXELS_A_WORKER = 50_000_000  # that are decoded in a second or less
_MOST_WORKERS = 8


def sample_shapes(dataset: Any, most: int = 256) -> list[tuple[int, int]]:
    """Return height and width of some images, evenly from all; of files the headers alone are read.

    Args:
        dataset: of images and labels.
        most: images.

    Returns:
        Shapes. An image that cannot be read is left out.
    """
    shapes = []
    for index in range(0, len(dataset), max(math.ceil(len(dataset) / most), 1)):
        with suppress(Exception):  # decoders raise what they like; it is told when the image is trained on
            shapes.append(_shape(dataset, index))
    return shapes


def _shape(dataset: Any, index: int) -> tuple[int, int]:
    if listing := getattr(dataset, "listing", None):
        return stored_shape(listing.file(index))
    if reader := getattr(dataset, "reader", None):
        with reader[index][0] as file:
            return stored_shape(file)
    image = dataset[index][0]
    return image.height, image.width


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


def num_workers(num_pixels: float, processes: int = 1) -> int:
    """Return the worker processes that decode images: a core each, at most 8; none where it takes a second an epoch.

    Args:
        num_pixels: of all training images.
        processes: that train on this machine.

    Returns:
        Worker processes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if num_pixels < _PIXELS_A_WORKER else min(max(cores // processes, 1), _MOST_WORKERS)


def total_memory(processes: int = 1) -> tuple[int, str]:
    """Return the bytes where a process trains a model, on its GPU if there is one, and the words for it.

    It is not what is free now: each process decides for itself, and all must come to the same batch.

    Args:
        processes: that train on this machine, and share its memory if they train on the CPU.

    Returns:
        The bytes, and "GPU memory" or "memory".
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1], "GPU memory"
    return psutil.virtual_memory().total // processes, "memory"


def fitting(batch: int, side: int, memory: int, *, change_batch: bool, change_side: bool) -> tuple[int, int]:
    """Return batch and image size of which a training step should fit into half of the memory.

    It is a rough rule, as the model is not known here: 3 kB an input pixel. The batch is halved down to 8; then the
    size is reduced down to 64; then the batch is halved further.

    Args:
        batch: images a step.
        side: height and width of an image, pixels.
        memory: bytes.
        change_batch: whether the batch may be smaller.
        change_side: whether the size may be smaller.

    Returns:
        Batch and size.
    """
    pixels = memory / 2 / _BYTES_A_PIXEL
    for least in (8, 1):
        while change_batch and batch > least and batch * side**2 > pixels:
            batch = max(batch // 2, least)
        while change_side and side > 2 * _STEP and batch * side**2 > pixels:
            side -= _STEP
    return batch, side
