"""Digit scenes for detection and segmentation: real pixels without a download.

The scenes are written to disk once, in the layouts of COCO and of ADE20K, and read from there as those are.
"""

import os
from pathlib import Path
from typing import Any, Literal

from softmaxfree.data.ade20k import Ade20kDataModule
from softmaxfree.data.coco import CocoDataModule
from softmaxfree.data.scenes_export import CLASS_NAMES, VERSION, export_scenes
from softmaxfree.data.scenes_render import DIGITS

__all__ = ["ScenesDetectionDataModule", "ScenesSegmentationDataModule"]


class ScenesDetectionDataModule(CocoDataModule):
    """Digit scenes with boxes and masks of the digits; batches are those of `CocoDataModule`.

    Args:
        root: Folder of the scenes; null for one in the user's cache, named by what is in it.
        train: Number of training scenes.
        val: Number of validation scenes.
        img_size: Height and width of a scene, in pixels.
        batch_size: Number of images in a batch, of each process.
        num_workers: Number of processes that prepare images; 0 prepares them in the process of the training.
        with_masks: Whether targets have masks, which Mask R-CNN needs.
        augment: Whether training images are resized a little; they are never mirrored, as digits are not.
        train_digits: Smallest and largest number of digits in a training scene.
        scenes_seed: Seed by which the scenes are drawn.
        on_error: What happens at an unreadable image: "skip" leaves it out, names and counts it; "fail" stops the run.
        seed: Seed of the run, which does not change the scenes.
    """

    preparation = ("img_size",)

    def __init__(
        self,
        root: str | None = None,
        train: int = 1000,
        val: int = 200,
        img_size: int = 256,
        batch_size: int = 8,
        num_workers: int = 0,
        with_masks: bool = False,
        augment: bool = True,
        train_digits: tuple[int, int] = DIGITS,
        scenes_seed: int = 0,
        on_error: Literal["skip", "fail"] = "skip",
        seed: int = 42,
    ) -> None:
        self.scenes: dict[str, Any] = {
            "train": train, "val": val, "img_size": img_size, "seed": scenes_seed, "train_digits": train_digits,
        }  # fmt: skip
        super().__init__(
            root or _cache_folder(self.scenes),
            batch_size=batch_size,
            num_workers=num_workers,
            with_masks=with_masks,
            augment=augment,
            hflip=0,
            min_size=[img_size * eighths // 8 for eighths in (7, 8, 9)],
            max_size=img_size * 9 // 8,
            on_error=on_error,
            seed=seed,
        )

    @property
    def data_config(self) -> dict[str, Any]:
        """How an image is prepared."""
        side = self.scenes["img_size"]
        return {**super().data_config, "input_size": (3, side, side), "size": (side, side)}

    def prepare_data(self) -> None:
        """Write the scenes, if they are not there."""
        export_scenes(str(self.root), **self.scenes)


class ScenesSegmentationDataModule(Ade20kDataModule):
    """Digit scenes with a class for each pixel, background or digit; batches are those of `Ade20kDataModule`.

    Args:
        root: Folder of the scenes; null for one in the user's cache, named by what is in it.
        train: Number of training scenes.
        val: Number of validation scenes.
        img_size: Height and width of a scene, in pixels.
        batch_size: Number of images in a batch, of each process.
        num_workers: Number of processes that prepare images; 0 prepares them in the process of the training.
        augment: Whether training images are resized a little, cropped and changed in colour; they are never mirrored,
            as digits are not.
        scale: Smallest and largest factor on the size of a training image; from 1 up all crops have the same size.
        photometric: Probability of each change of a training image's colours, 0 to 1.
        train_digits: Smallest and largest number of digits in a training scene.
        scenes_seed: Seed by which the scenes are drawn.
        on_error: What happens at an unreadable image: "skip" leaves it out, names and counts it; "fail" stops the run.
        seed: Seed of the run, which does not change the scenes.
    """

    preparation = ("img_size",)

    def __init__(
        self,
        root: str | None = None,
        train: int = 1000,
        val: int = 200,
        img_size: int = 256,
        batch_size: int = 8,
        num_workers: int = 0,
        augment: bool = True,
        scale: tuple[float, float] = (0.8, 1.25),
        photometric: float = 0.0,
        train_digits: tuple[int, int] = DIGITS,
        scenes_seed: int = 0,
        on_error: Literal["skip", "fail"] = "skip",
        seed: int = 42,
    ) -> None:
        self.scenes: dict[str, Any] = {
            "train": train, "val": val, "img_size": img_size, "seed": scenes_seed, "train_digits": train_digits,
        }  # fmt: skip
        super().__init__(
            root or _cache_folder(self.scenes),
            batch_size=batch_size,
            num_workers=num_workers,
            img_size=img_size,
            num_classes=len(CLASS_NAMES),
            augment=augment,
            scale=scale,
            hflip=0,
            cat_max_ratio=1,  # most of a scene is background
            photometric=photometric,
            missing_classes="allow",  # a few scenes need not have every digit
            on_error=on_error,
            seed=seed,
        )

    def prepare_data(self) -> None:
        """Write the scenes, if they are not there."""
        export_scenes(str(self.root), **self.scenes)


def _cache_folder(scenes: dict[str, Any]) -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = "{train}-{val}-{img_size}px-seed{seed}-digits{train_digits[0]}to{train_digits[1]}".format(**scenes)
    return str(Path(cache) / "softmaxfree" / f"scenes{VERSION}-{name}")
