"""Images with a class for each pixel in the layout of ADE20K's scene parsing benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from softmaxfree.data.images import AbstractImagesDataModule, AnnotationError, ReadableImages, collate_lists
from softmaxfree.errors import InputError

__all__ = ["IGNORED", "Ade20kDataModule"]

IGNORED = 255  # the label of pixels that count neither in training nor in a score

_FOLDERS = {"train": "training", "val": "validation"}
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_NAMES_FILE = "objectInfo150.txt"


class Ade20kDataModule(AbstractImagesDataModule):
    """Semantic segmentation: `root/images/{training,validation}`, `root/annotations/{training,validation}`.

    This is the layout of SceneParse150, `ADEChallengeData2016`, with a PNG of labels for each image. A batch is
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
        num_classes: number of classes.
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
    ) -> None:
        super().__init__(batch_size, num_workers, on_error, seed, collate_lists)
        if not 1 <= num_classes <= IGNORED:
            raise InputError(f"data.num_classes must be from 1 to {IGNORED}, got {num_classes}")
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
        self.data_config: dict[str, Any] = {
            "input_size": (3, img_size, img_size),
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
            ValueError: this is another layout, or an image lacks its labels, or labels their image.
        """
        root = _find_root(self.root)
        self.class_names = self.class_names or _read_names(root, self.num_classes)
        for split in ("val", "train") if stage == "fit" else ("val",):
            if split not in self._sets:
                images = _SceneParse(root, _FOLDERS[split], self.num_classes, self.reduce_zero_label)
                self._sets[split] = ReadableImages(images, self._transform(split == "train"), dense=True)

    def _transform(self, training: bool) -> v2.Transform:
        plain = [
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.ToPureTensor(),
        ]
        if not training:
            return v2.Compose([_ResizeImage(self.img_size, self.max_size), *plain])
        if not self.augment:
            return v2.Compose([v2.RandomShortestSize(self.img_size, self.max_size), *plain])
        return v2.Compose(
            [
                _RandomRatio(self.img_size, self.max_size, self.scale),
                _ClassLimitedCrop(self.img_size, self.cat_max_ratio),
                v2.RandomHorizontalFlip(self.hflip),
                v2.RandomPhotometricDistort(p=self.photometric),
                *plain,
            ]
        )


class _SceneParse(Dataset):
    def __init__(self, root: Path, folder: str, num_classes: int, reduce_zero_label: bool) -> None:
        images = _files(root / "images" / folder, _SUFFIXES)
        labels = _files(root / "annotations" / folder, {".png"})
        for there, missing, what in ((images, labels, "labels"), (labels, images, "image")):
            lone = sorted(there.keys() - missing.keys())
            if lone:
                raise InputError(f"data.root: {there[lone[0]]} has no {what} ({len(lone)} such files)")
        self.images = [images[stem] for stem in sorted(images)]
        self.labels = [labels[stem] for stem in sorted(images)]
        self.num_classes, self.reduce_zero_label = num_classes, reduce_zero_label

    def __len__(self) -> int:
        return len(self.images)

    def filename(self, index: int, absolute: bool = True) -> str:
        return str(self.images[index]) if absolute else self.images[index].name

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.images[index]) as file:
            image = v2.functional.pil_to_tensor(file.convert("RGB"))
        path = self.labels[index]
        with Image.open(path) as file:
            values = np.array(file)
        if values.shape != image.shape[-2:]:
            raise AnnotationError(
                f"{path} is an array of shape {values.shape}; its image needs one of {tuple(image.shape[-2:])} labels"
            )
        low, high = (0, self.num_classes) if self.reduce_zero_label else (0, self.num_classes - 1)
        wrong = values[((values < low) | (values > high)) & (values != IGNORED)]
        if len(wrong):
            raise AnnotationError(
                f"{path} has the label {wrong[0]}; allowed are {low} to {high}, for data.num_classes = "
                f"{self.num_classes} and data.reduce_zero_label = {self.reduce_zero_label}, and {IGNORED}"
            )
        labels = values.astype(np.uint8)
        if self.reduce_zero_label:
            labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
        return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(labels))


class _ResizeImage(v2.Transform):
    """Resizes the shorter side of the image, and leaves the labels alone."""

    def __init__(self, min_size: int, max_size: int) -> None:
        super().__init__()
        self.resize = v2.RandomShortestSize(min_size, max_size)

    def forward(self, *inputs: Any) -> Any:
        image, labels = inputs
        return self.resize(image), labels


class _RandomRatio(v2.Transform):
    """Resizes to within (max_size, min_size), both times a ratio drawn from `scale`."""

    def __init__(self, min_size: int, max_size: int, scale: tuple[float, float]) -> None:
        super().__init__()
        self.min_size, self.max_size, self.scale = min_size, max_size, scale

    def forward(self, *inputs: Any) -> Any:
        ratio = float(torch.empty(1).uniform_(*self.scale))
        size = [max(round(side * ratio), 1) for side in (self.min_size, self.max_size)]
        return v2.RandomShortestSize(*size)(*inputs)


class _ClassLimitedCrop(v2.Transform):
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


def _files(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {folder}")
    files = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in suffixes}
    if not files:
        raise InputError(f"data.root: {folder} has no files {', '.join(sorted(suffixes))}")
    return files


def _read_names(root: Path, num_classes: int) -> tuple[str, ...]:
    file = root / _NAMES_FILE
    if not file.is_file():
        return tuple(str(i) for i in range(num_classes))
    rows = file.read_text(encoding="utf-8").splitlines()[1:]  # after the head: Idx, Ratio, Train, Val, Name
    names = tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip())
    if len(names) != num_classes:
        raise InputError(f"{file} names {len(names)} classes, data.num_classes is {num_classes}")
    return names
