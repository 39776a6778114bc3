"""What all data modules of images and masks have in common: sizes, augmentation, batches."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from softmaxfree.data.images import DENSE_PREPARATION, MIN_SIDE, AbstractImagesDataModule, ReadableImages, collate_lists
from softmaxfree.data.mask_classes import MaskClasses
from softmaxfree.data.mask_images import MaskImages, MaskPair
from softmaxfree.data.segment_transforms import ClassLimitedCrop, RandomRatio, Resize
from softmaxfree.data.turns import AnyOrientation
from softmaxfree.errors import InputError

__all__ = ["AbstractMasksDataModule"]

Auto = Literal["auto"]


class AbstractMasksDataModule(AbstractImagesDataModule):
    """Images and masks: a subclass finds them, and calls `_use` for each split.

    A batch is `(images, labels)`, two lists: float32 (3, height, width) in [0, 1], and int64 (height, width) from 0 to
    `num_classes - 1`, or 255 where a pixel is ignored.

    A training image is resized by a random ratio, cropped to at most `img_size` squared (smaller where the image
    is), mirrored and distorted in colour. A validation image is resized to a shorter side of `img_size`, while its
    labels keep the size of their file, at which scores are to be taken.

    Args:
        batch_size: Number of images in a batch, of each process.
        num_workers: Number of processes that prepare images; 0 prepares them in the process of the training.
        img_size: Side of a training crop and shorter side of a validation image, in pixels.
        max_size: Longer side of an image for the network at most, in pixels; of a training image before `scale` changes
            it.
        augment: Whether training images are resized, cropped, mirrored and changed in colour at random.
        scale: Smallest and largest factor on the size of a training image. No side becomes smaller than 32 pixels by
            it.
        hflip: Probability that a training image is mirrored, 0 to 1.
        orientation: "any" also mirrors training images vertically and turns them by quarters, for images without an up,
            such as those from above or through a microscope; "upright" does not.
        cat_max_ratio: Part of a training crop that one class should cover at most, 0 to 1; other crops are drawn again,
            up to ten times.
        photometric: Probability of each change of a training image's colours, 0 to 1.
        on_error: What happens at an unreadable image: "skip" leaves it out, names and counts it; "fail" stops the run.
        seed: Seed of the run.
        max_pixels: Number of pixels (height times width) above which an image counts as unreadable; None for no limit.
    """

    preparation: ClassVar[tuple[str, ...]] = ("img_size", "max_size")

    def __init__(
        self,
        *,
        batch_size: int | Auto,
        num_workers: int | Auto,
        img_size: int | Auto,
        max_size: int | Auto,
        augment: bool,
        scale: tuple[float, float],
        hflip: float,
        orientation: Literal["upright", "any"],
        cat_max_ratio: float,
        photometric: float,
        on_error: Literal["skip", "fail"],
        seed: int,
        max_pixels: int | None,
    ) -> None:
        super().__init__(batch_size, num_workers, on_error, seed, max_pixels, collate_lists)
        most = max_size if max_size != "auto" else math.inf
        if img_size != "auto" and not MIN_SIDE <= img_size <= most:
            raise InputError(
                f"data.img_size must be from {MIN_SIDE} to data.max_size = {max_size}, got {img_size}; "
                "for larger ones give data.max_size, too"
            )
        if not 0 < scale[0] <= scale[1]:
            raise InputError(f"data.scale needs two positive numbers in order, got {scale}")
        for key, value in (("hflip", hflip), ("photometric", photometric)):
            if not 0 <= value <= 1:
                raise InputError(f"data.{key} must be a probability from 0 to 1, got {value}")
        self.img_size: Any = img_size
        self.max_size: Any = max_size
        self.augment = augment
        self.scale = scale
        self.hflip = hflip
        self.orientation = orientation
        self.cat_max_ratio = cat_max_ratio
        self.photometric = photometric
        self.class_names: tuple[str, ...] = ()
        self._pixels: dict[str, Counter[int]] = {}  # of each label, by split

    @property
    def data_config(self) -> dict[str, Any]:
        """How an image is prepared; sizes that are "auto" are not there before `setup`."""
        if "auto" in (self.img_size, self.max_size):
            return dict(DENSE_PREPARATION)
        sizes = {"input_size": (3, self.img_size, self.img_size), "size": (self.img_size, self.max_size)}
        return {**sizes, **DENSE_PREPARATION}

    @property
    def measured_size(self) -> tuple[int, int]:
        """After `setup`: shorter side of a validation image for the network, and its longer side at most; pixels."""
        return self.data_config["size"]

    @property
    def class_counts(self) -> tuple[int, ...]:
        """After `setup("fit")`: pixels of each class in the training masks that were looked at."""
        counts = self._pixels.get("train", Counter())
        return tuple(counts[label] for label in range(len(self.class_names))) if counts else ()

    def _use(self, split: str, pairs: Sequence[MaskPair], classes: MaskClasses) -> None:
        training = split == "train"
        images = MaskImages(pairs, classes, self._smallest(training), self.max_pixels)
        self._sets[split] = ReadableImages(images, self._transform(training), dense=True)

    def _smallest(self, training: bool) -> tuple[int, int]:
        """Shorter and longer side that an image needs to fit; a ratio below 1 makes no side too small."""
        ratio = max(self.scale[0], 1) if training and self.augment else 1
        return round(self.img_size * ratio), round(self.max_size * ratio)

    def _transform(self, training: bool) -> v2.Transform:
        size = self.img_size, self.max_size
        plain = [
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.ToPureTensor(),
        ]
        if not training:
            return v2.Compose([Resize(size, with_labels=False), *plain])
        if not self.augment:
            return v2.Compose([Resize(size), *plain])
        return v2.Compose(
            [
                RandomRatio(size, self.scale),
                ClassLimitedCrop(self.img_size, self.cat_max_ratio),
                v2.RandomHorizontalFlip(self.hflip),
                *([AnyOrientation()] if self.orientation == "any" else []),
                v2.RandomPhotometricDistort(p=self.photometric),
                *plain,
            ]
        )
