"""Transforms of an image and its labels, for semantic segmentation."""

import math
from typing import Any

import torch
from torchvision.transforms import v2

from softmaxfree.data.images import MIN_SIDE
from softmaxfree.data.mask_classes import IGNORED
from softmaxfree.images import resized_shape

__all__ = ["ClassLimitedCrop", "RandomRatio", "Resize"]


class Resize(v2.Transform):
    """Resizes by `resized_shape`; the labels too, or not."""

    def __init__(self, size: tuple[int, int], with_labels: bool = True) -> None:
        super().__init__()
        self.size, self.with_labels = size, with_labels

    def forward(self, *inputs: Any) -> Any:
        image, labels = inputs
        height, width = image.shape[-2:]
        shape = list(resized_shape(height, width, self.size))
        return v2.functional.resize(image, shape), v2.functional.resize(labels, shape) if self.with_labels else labels


class RandomRatio(v2.Transform):
    """Resizes to within a size times a ratio that is drawn from `scale`, but no side below what the networks need."""

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def forward(self, *inputs: Any) -> Any:
        ratio = float(torch.empty(1).uniform_(*self.scale))
        sides = inputs[0].shape[-2:]
        needed = MIN_SIDE, math.ceil(MIN_SIDE * max(sides) / min(sides))
        short, long = (max(round(side * ratio), least) for side, least in zip(self.size, needed, strict=True))
        return Resize((short, long))(*inputs)


class ClassLimitedCrop(v2.Transform):
    """Crops at random; up to ten times where one class covers too much of the crop."""

    def __init__(self, size: int, cat_max_ratio: float) -> None:
        super().__init__()
        self.size, self.cat_max_ratio = size, cat_max_ratio

    def forward(self, *inputs: Any) -> Any:
        image, labels = inputs
        height, width = labels.shape
        window = min(self.size, height), min(self.size, width)
        for _ in range(10):
            top = int(torch.randint(height - window[0] + 1, ()))
            left = int(torch.randint(width - window[1] + 1, ()))
            part = v2.functional.crop(labels, top, left, *window)
            counts = part[part != IGNORED].long().bincount()
            # as the benchmark's usual code does: a crop of a single class is drawn again too
            if (counts > 0).sum() > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return v2.functional.crop(image, top, left, *window), part
