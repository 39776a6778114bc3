"""Images with a class for each pixel in the layout of ADE20K's scene parsing benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import tv_tensors
from torchvision.transforms import v2

from softmaxfree.data.images import MIN_SIDE, AbstractImagesDataModule, ReadableImages, collate_lists, warn_left_out
from softmaxfree.data.label_scan import scan_labels
from softmaxfree.data.scene_parse import IGNORED, SceneParse
from softmaxfree.data.segment_transforms import ClassLimitedCrop, RandomRatio, Resize
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS

__all__ = ["IGNORED", "Ade20kDataModule"]

_FOLDERS = {"train": "training", "val": "validation"}
_NAMES_FILE = "objectInfo150.txt"


class Ade20kDataModule(AbstractImagesDataModule):
    """Semantic segmentation: `root/images/{training,validation}`, `root/annotations/{training,validation}`.

    This is the layout of SceneParse150, `ADEChallengeData2016`, with a PNG of labels for each image: grey of 8 or 16
    bits, or a palette, whose indices count. A batch is
    `(images, labels)`, two lists: float32 (3, height, width) in [0, 1], and int64 (height, width) from 0 to
    `num_classes - 1`, or 255 where a pixel is ignored.

    A training image is resized by a random ratio, cropped to at most `img_size` squared (smaller where the image
    is), mirrored and distorted in colour. A validation image is resized to a shorter side of `img_size`, while its
    labels keep the size of their file, at which scores are to be taken.

    Args:
        root: folder of the data, or the one that holds `ADEChallengeData2016`.
        batch_size: images a process and step.
        num_workers: worker processes.
        img_size: side in pixels of training crops, and shorter side of validation images.
        max_size: longer side of a validation image at most; of a training image before its ratio.
        num_classes: number of classes, 2 at least.
        class_names: names of the classes; null reads `objectInfo150.txt` where there is one, else numbers.
        reduce_zero_label: whether label 0 in the files is "other", which is ignored, and classes start at 1.
        augment: whether training images are augmented; otherwise they are prepared as validation images are,
            with labels of the images' size.
        scale: smallest and largest ratio of a training image.
        hflip: probability of a mirrored training image.
        cat_max_ratio: largest part of a training crop that one class should cover.
        photometric: probability of each distortion of a training image's colours.
        on_error: what an unreadable image does: be left out, named and counted, or stop the run.
        seed: seed of the run.
        missing_classes: what a class does that occurs in no training mask: it is an error, or allowed.
        max_pixels: height times width from which an image counts as unreadable; null is no limit.
    """

    preparation: ClassVar[tuple[str, ...]] = ("img_size", "max_size")

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 8,
        img_size: int = 512,
        max_size: int = 2048,
        num_classes: int = 150,
        class_names: Sequence[str] | None = None,
        reduce_zero_label: bool = True,
        augment: bool = True,
        scale: tuple[float, float] = (0.5, 2.0),
        hflip: float = 0.5,
        cat_max_ratio: float = 0.75,
        photometric: float = 0.5,
        on_error: Literal["skip", "fail"] = "skip",
        seed: int = 42,
        missing_classes: Literal["allow", "fail"] = "fail",
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__(batch_size, num_workers, on_error, seed, max_pixels, collate_lists)
        most = IGNORED - 1 if reduce_zero_label else IGNORED
        if not 2 <= num_classes <= most:  # one class is always right
            raise InputError(
                f"data.num_classes must be from 2 to {most}, got {num_classes}; to tell one class from what is "
                "around it, both are classes, and data.reduce_zero_label is false"
            )
        if not MIN_SIDE <= img_size <= max_size:
            raise InputError(f"data.img_size must be from {MIN_SIDE} to data.max_size = {max_size}, got {img_size}")
        if not 0 < scale[0] <= scale[1]:
            raise InputError(f"data.scale needs two positive numbers in order, got {scale}")
        if class_names is not None and len(class_names) != num_classes:
            raise InputError(f"data.class_names has {len(class_names)} names for data.num_classes = {num_classes}")
        self.root = Path(root).expanduser()
        self.img_size = img_size
        self.max_size = max_size
        self.num_classes = num_classes
        self.class_names = tuple(class_names or ())
        self.reduce_zero_label = reduce_zero_label
        self.augment = augment
        self.scale = scale
        self.hflip = hflip
        self.cat_max_ratio = cat_max_ratio
        self.photometric = photometric
        self.missing_classes = missing_classes
        self.data_config: dict[str, Any] = {
            "input_size": (3, img_size, img_size),
            "size": (img_size, max_size),
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }

    def setup(self, stage: str) -> None:
        """Find the images, and those of the training split only to fit.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            FileNotFoundError: a folder is not there.
            InputError: this is another layout, an image lacks its labels, or labels their image, or the labels are not
                those of `num_classes` classes.
        """
        root = _find_root(self.root)
        self.class_names = self.class_names or _read_names(root, self.num_classes)
        for split in ("val", "train") if stage == "fit" else ("val",):
            if split not in self._sets:
                images = SceneParse(
                    root,
                    _FOLDERS[split],
                    self.num_classes,
                    self.reduce_zero_label,
                    self._smallest(split == "train"),
                    self.max_pixels,
                )
                warn_left_out(root / "images" / _FOLDERS[split], images.left_out)
                self._check_classes(images, split == "train")
                self._sets[split] = ReadableImages(images, self._transform(split == "train"), dense=True)

    def _smallest(self, training: bool) -> tuple[int, int]:
        """Shorter and longer side of the smallest image that the transform makes."""
        size = self.img_size, self.max_size
        return RandomRatio.scaled(size, self.scale[0]) if training and self.augment else size

    def _check_classes(self, images: SceneParse, training: bool) -> None:
        scan = scan_labels(images.values, len(images), images.class_values, str(images.folder))
        absent = [value for value in images.class_values if value not in scan.pixels]
        if not scan.looked or not absent:
            return
        named = ", ".join(f"{value} ({self.class_names[value - images.class_values[0]]})" for value in absent[:5])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        message = f"{images.folder}: {named}{more} occur nowhere; {scan}"
        if len(absent) == self.num_classes:
            raise InputError(f"{images.folder}: every pixel is ignored; {scan}; {images.allowed}")
        if self.missing_classes == "fail":
            if training:
                raise InputError(f"{message}; {images.allowed}; data.missing_classes = allow lets it be so")
            rank_zero_warn(f"{message}; they have no score")

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
                v2.RandomPhotometricDistort(p=self.photometric),
                *plain,
            ]
        )


def _find_root(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {root}")
    inner = root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else root
    first_images = (path.name for path in (root / "images" / "training").glob("*_seg.png"))
    if (root / "index_ade20k.pkl").exists() or (root / "images" / "ADE").exists() or next(first_images, None):
        raise InputError(
            f"data.root: {root} is the full ADE20K; what is read is its benchmark SceneParse150, the folder "
            "ADEChallengeData2016 with images/ and annotations/"
        )
    return root


def _read_names(root: Path, num_classes: int) -> tuple[str, ...]:
    file = root / _NAMES_FILE
    if not file.is_file():
        return tuple(str(i) for i in range(num_classes))
    rows = file.read_text(encoding="utf-8").splitlines()[1:]  # after the head: Idx, Ratio, Train, Val, Name
    names = tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip())
    if len(names) != num_classes:
        raise InputError(f"{file} names {len(names)} classes, data.num_classes is {num_classes}")
    return names
