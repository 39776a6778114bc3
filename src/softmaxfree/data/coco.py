"""Images with boxes and masks in the layout of COCO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from softmaxfree.data.coco_annotations import CocoAnnotations
from softmaxfree.data.images import (
    AbstractImagesDataModule,
    AnnotationError,
    ReadableImages,
    check_side,
    collate_lists,
    frame_hint,
)
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS, read_image

__all__ = ["CocoDataModule"]


class CocoDataModule(AbstractImagesDataModule):
    """Object detection: images in `root/{train,val}2017`, `root/annotations/instances_{train,val}2017.json`.

    A batch is `(images, targets)`, two lists. An image is float32 (3, height, width) in [0, 1]. A target has
    `boxes (n, 4)` float32 x1 y1 x2 y2 in pixels, `labels (n,)` int64 from 0, in the order of category ids,
    `iscrowd (n,)` bool, `area (n,)` float32 in pixels of the file, `image_id`, and if asked for
    `masks (n, height, width)` uint8. Images without boxes are kept. Validation images have the size of their
    files; regions marked as crowds are among their targets, and not among those of training images. Boxes and masks
    are those of the image as it is shown, turned by its EXIF orientation; where the size that the file lists is that
    of the image before it is turned, this is an error.

    Args:
        root: folder of the data.
        batch_size: images a process and step.
        num_workers: worker processes.
        with_masks: whether targets have masks.
        augment: whether training images are mirrored and resized.
        hflip: probability of a mirrored training image.
        min_size: shorter sides in pixels, of which a training image gets one by chance.
        max_size: a training image's longer side is at most this.
        zero_boxes: what a box without width or height does: it is left out and counted, or an error. COCO has two.
        on_error: what an unreadable image does: be left out, named and counted, or stop the run.
        seed: seed of the run.
        bad_annotations: what any annotation that is not as COCO's are does: it is left out and counted, or an error.
        max_pixels: height times width from which an image counts as unreadable; null is no limit.
    """

    preparation: ClassVar[tuple[str, ...]] = ("min_size", "max_size")

    def __init__(
        self,
        root: str,
        batch_size: int = 2,
        num_workers: int = 8,
        with_masks: bool = False,
        augment: bool = True,
        hflip: float = 0.5,
        min_size: Sequence[int] = (800,),
        max_size: int = 1333,
        zero_boxes: Literal["drop", "fail"] = "fail",
        on_error: Literal["skip", "fail"] = "skip",
        seed: int = 42,
        bad_annotations: Literal["drop", "fail"] = "fail",
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__(batch_size, num_workers, on_error, seed, max_pixels, collate_lists)
        if not min_size or min(min_size) < 1 or max(min_size) > max_size:
            raise InputError(f"data.min_size needs sizes from 1 to data.max_size = {max_size}, got {min_size}")
        self.root = Path(root).expanduser()
        self.with_masks = with_masks
        self.augment = augment
        self.hflip = hflip
        self.min_size = tuple(min_size)
        self.max_size = max_size
        self.zero_boxes: Literal["drop", "fail"] = zero_boxes
        self.bad_annotations: Literal["drop", "fail"] = bad_annotations
        self.class_names: tuple[str, ...] = ()
        self.data_config: dict[str, Any] = {
            "input_size": (3, max(min_size), max_size),
            "size": (max(min_size), max_size),
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None before `setup`."""
        return len(self.class_names) or None

    def setup(self, stage: str) -> None:
        """Read the annotations, and those of the training split only to fit.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            FileNotFoundError: a folder, an annotation file or an image is not there.
            InputError: an annotation file contradicts itself, or the splits differ in their categories.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"data.root: there is no folder {self.root}")
        for split in ("val", "train") if stage == "fit" else ("val",):
            if split in self._sets:
                continue
            annotations = CocoAnnotations(
                self.root / "annotations" / f"instances_{split}2017.json",
                self.root / f"{split}2017",
                self.with_masks,
                self.bad_annotations,
                self.zero_boxes,
            )
            if self.class_names and annotations.class_names != self.class_names:
                names = sorted(set(annotations.class_names) ^ set(self.class_names))
                raise InputError(f"{annotations.file} has other categories than the validation file: {names}")
            self.class_names = annotations.class_names
            augment = split == "train" and self.augment
            size = self.data_config["size"] if split == "val" else None  # of the image that the network gets
            if augment:
                size = min(self.min_size), self.max_size
            images = _CocoImages(annotations, split == "val", size, self.max_pixels)
            self._sets[split] = ReadableImages(images, self._train_transform() if augment else _plain(), dense=True)

    def _train_transform(self) -> v2.Transform:
        return v2.Compose(
            [
                v2.RandomHorizontalFlip(self.hflip),
                v2.RandomShortestSize(self.min_size, self.max_size),
                v2.ClampBoundingBoxes(),  # the next one drops what reaches over the edge by a rounding error
                v2.SanitizeBoundingBoxes(labels_getter=_per_box),
                _plain(),
            ]
        )


class _CocoImages(Dataset):
    def __init__(
        self, annotations: CocoAnnotations, with_crowds: bool, size: tuple[int, int] | None, max_pixels: int | None
    ) -> None:
        self.annotations, self.with_crowds, self.size, self.max_pixels = annotations, with_crowds, size, max_pixels

    def __len__(self) -> int:
        return len(self.annotations)

    def filename(self, index: int, absolute: bool = True) -> str:
        name = self.annotations.names[index]
        return str(self.annotations.folder / name) if absolute else name

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        name = self.filename(index)
        image = tv_tensors.Image(v2.functional.pil_to_tensor(read_image(name, "RGB", self.max_pixels)))
        height, width = size = tuple(image.shape[-2:])
        listed = tuple(self.annotations.sizes[index].tolist())
        if size != listed:
            raise AnnotationError(
                f"{name} is {height} high and {width} wide, {self.annotations.file} says {listed}"
                + frame_hint(name, listed)
            )
        check_side(name, height, width, self.size)
        target = self.annotations.target(index, self.with_crowds)
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
        if "masks" in target:
            target["masks"] = tv_tensors.Mask(target["masks"])
        return image, target


def _per_box(sample: tuple[Tensor, dict[str, Any]]) -> tuple[Tensor, ...]:
    """What SanitizeBoundingBoxes shortens with the boxes; masks it finds by itself."""
    target = sample[1]
    return target["labels"], target["iscrowd"], target["area"]


def _plain() -> v2.Transform:
    return v2.Compose([v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.ToPureTensor()])
