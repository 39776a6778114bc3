"""Images with boxes and masks in COCO's JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from softmaxfree.data.class_folders import Listing
from softmaxfree.data.coco_annotations import CocoAnnotations
from softmaxfree.data.coco_layout import CocoFiles, find_coco
from softmaxfree.data.dense_sizes import decide_sizes
from softmaxfree.data.images import (
    DENSE_PREPARATION,
    MIN_SIDE,
    AbstractImagesDataModule,
    AnnotationError,
    ReadableImages,
    check_side,
    collate_lists,
    frame_hint,
)
from softmaxfree.data.kinds import hinting_at_kind
from softmaxfree.data.splits import EVERY, draw_split, read_split
from softmaxfree.data.telling import equal_images, unused_images
from softmaxfree.data.turns import AnyOrientation
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS, natural_key, read_image
from softmaxfree.printing import few

__all__ = ["CocoDataModule"]

_ZOOM = (6, 7, 8, 9, 10)  # eighths of the decided size, that a training image may have


class CocoDataModule(AbstractImagesDataModule):
    """Object detection by COCO's JSON: one's own files, or COCO's layout.

    `train_json` and `val_json` name the files; without the second a part of the first validates: a fifth to 2,500
    images, a tenth from 5,000, the same by seed, so that each class is on both sides as far as that can be. Their
    images are in `train_images` and `val_images`, else in the folder in which most of them are found: `root`, the
    file's own, the one above its `annotations`, and `images`, `train`, `val` and the like in these.

    `root` alone holds `{train,val}2017` and `annotations/instances_{train,val}2017.json`, as COCO does; or one JSON
    file, or one for `train` and one for `val`, in it or in its `annotations`; or Roboflow's
    `{train,valid}/_annotations.coco.json`.

    A batch is `(images, targets)`, two lists. An image is float32 (3, height, width) in [0, 1]. A target has
    `boxes (n, 4)` float32 x1 y1 x2 y2 in pixels, `labels (n,)` int64 from 0, in the order of category ids,
    `iscrowd (n,)` bool, `area (n,)` float32 in pixels of the file, `image_id`, and if asked for
    `masks (n, height, width)` uint8. Images without boxes are kept. Validation images have the size of their
    files; regions marked as crowds are among their targets, and not among those of training images. Boxes and masks
    are those of the image as it is shown, turned by its EXIF orientation; where the size that the file lists is that
    of the image before it is turned, this is an error.

    Args:
        root: Folder of the data; with `train_json` a folder where its images are looked for.
        train_json: JSON file with the boxes of the training images, or of all images if there is no `val_json`.
        val_json: JSON file with the boxes of the validation images; null holds out a part of `train_json`.
        train_images: Folder of the images of `train_json`; null looks for it in `root` and around the file.
        val_images: Folder of the images of `val_json`; null looks for it in `root` and around the file.
        split: CSV file that says which images train and which validate, where one JSON file has both, with the columns
            `file` (the name as in the JSON file) and `split` (train or val). Null draws the split by the seed.
        batch_size: Number of images in a batch, of each process. "auto" is a power of two from 2 to 8, by the number of
            training images.
        num_workers: Number of processes that prepare images; 0 prepares them in the process of the training. "auto" is
            0 for little data, else one for each CPU core, 8 at most.
        with_masks: Whether targets have masks, which Mask R-CNN needs.
        augment: Whether training images are mirrored and resized at random.
        hflip: Probability that a training image is mirrored, 0 to 1.
        orientation: "any" also mirrors training images vertically and turns them by quarters, for images without an up,
            such as those from above or through a microscope; "upright" does not.
        min_size: Shorter side of a training image for the network, in pixels; of several sizes, each image gets one at
            random. "auto" is five sizes, from 6 to 10 eighths of `eval_size`.
        max_size: Longer side of an image for the network at most, in pixels; an image that would be longer gets
            smaller. "auto" is what all but the longest twentieth of the images need, at most twice the shorter side,
            but more for narrow images, which keep 32 pixels each way.
        eval_size: Shorter side of a validation image for the network, in pixels. Null is the largest of `min_size`;
            where that is "auto", the median of the shorter sides, as a multiple of 32, from 64 to 512.
        zero_boxes: What happens at a box without width or height, of which COCO has two: "drop" leaves it out and
            counts it; "fail" stops the run.
        on_error: What happens at an unreadable image: "skip" leaves it out, names and counts it; "fail" stops the run.
        seed: Seed of the run, and of the split.
        bad_annotations: What happens at any annotation that breaks the rules of COCO: "drop" leaves it out and counts
            it; "fail" stops the run.
        max_pixels: Number of pixels (height times width) above which an image counts as unreadable; null for no limit.
    """

    preparation: ClassVar[tuple[str, ...]] = ("min_size", "max_size", "eval_size")

    def __init__(
        self,
        root: str | None = None,
        train_json: str | None = None,
        val_json: str | None = None,
        train_images: str | None = None,
        val_images: str | None = None,
        split: str | None = None,
        batch_size: int | Literal["auto"] = 2,
        num_workers: int | Literal["auto"] = 8,
        with_masks: bool = False,
        augment: bool = True,
        hflip: float = 0.5,
        orientation: Literal["upright", "any"] = "upright",
        min_size: int | Sequence[int] | Literal["auto"] = (800,),
        max_size: int | Literal["auto"] = 1333,
        eval_size: int | None = None,
        zero_boxes: Literal["drop", "fail"] = "fail",
        on_error: Literal["skip", "fail"] = "skip",
        seed: int = 42,
        bad_annotations: Literal["drop", "fail"] = "fail",
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__(batch_size, num_workers, on_error, seed, max_pixels, collate_lists)
        min_size = (min_size,) if isinstance(min_size, int) else min_size
        sizes = [*(() if min_size == "auto" else min_size), *(() if eval_size is None else (eval_size,))]
        most = float("inf") if max_size == "auto" else max_size
        if not min_size or (sizes and (min(sizes) < MIN_SIDE or max(sizes) > most)):
            raise InputError(
                f"data.min_size needs sizes from {MIN_SIDE} to data.max_size = {max_size}, got {min_size}"
                + (f", and data.eval_size {eval_size}" if eval_size is not None else "")
            )
        if not 0 <= hflip <= 1:
            raise InputError(f"data.hflip must be a probability from 0 to 1, got {hflip}")
        self.root = _path(root)
        self.train_json, self.val_json = _path(train_json), _path(val_json)
        self.train_images, self.val_images = _path(train_images), _path(val_images)
        self.split = split
        self.with_masks = with_masks
        self.augment = augment
        self.hflip = hflip
        self.orientation = orientation
        self.min_size: Any = min_size if min_size == "auto" else tuple(min_size)
        self.max_size: Any = max_size
        self.eval_size: Any = eval_size
        self.zero_boxes: Literal["drop", "fail"] = zero_boxes
        self.bad_annotations: Literal["drop", "fail"] = bad_annotations
        self.class_names: tuple[str, ...] = ()
        self._read: dict[str, CocoAnnotations] = {}  # by split; that of one file for both is in both
        self._chosen: dict[str, list[int]] = {}  # images of each split
        self._how = ""
        self._compared: list[str] = []

    @property
    def data_config(self) -> dict[str, Any]:
        """How an image is prepared; sizes that are "auto" are not there before `setup`."""
        if "auto" in (self.min_size, self.max_size):
            return dict(DENSE_PREPARATION)
        size = self.eval_size or max(self.min_size), self.max_size
        return {"input_size": (3, *size), "size": size, **DENSE_PREPARATION}

    @property
    def measured_size(self) -> tuple[int, int]:
        """After `setup`: shorter side of a validation image for the network, and its longer side at most; pixels."""
        return self.data_config["size"]

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None before `setup`."""
        return len(self.class_names) or None

    @property
    def class_counts(self) -> tuple[int, ...]:
        """After `setup("fit")`: boxes of each class in the training split, without crowds."""
        return self._counts("train")

    @property
    def val_class_counts(self) -> tuple[int, ...]:
        """After `setup`: boxes of each class in the validation split, without crowds."""
        return self._counts("val")

    @property
    def num_boxes(self) -> dict[str, int]:
        """After `setup`: boxes of each split, without crowds."""
        return {split: sum(self._counts(split)) for split in self._chosen}

    @property
    def found(self) -> str:
        """After `setup`: images, boxes, splits and classes in one line."""
        images = ", ".join(f"{len(chosen)} {split}" for split, chosen in sorted(self._chosen.items()))
        counts = {split: self._counts(split) for split in self._chosen}
        totals = [sum(column) for column in zip(*counts.values(), strict=True)]
        named = [f"{name} {total}" for name, total in zip(self.class_names, totals, strict=True)]
        files = ", ".join(dict.fromkeys(f"{own.file} (images in {own.folder})" for own in self._read.values()))
        parts = [
            f"{sum(map(len, self._chosen.values()))} images of {files}: {images}{self._how}; {sum(totals)} boxes of "
            f"{len(named)} class{'es' * (len(named) > 1)}: {few(named)}"
        ]
        for split, own in sorted(counts.items()):
            absent = [name for name, count in zip(self.class_names, own, strict=True) if not count]
            if absent:
                parts.append(f"no box in {split} of {few(absent)}")
            if crowds := self._read[split].num_crowds(self._chosen[split]):
                use = "not trained on" if split == "train" else "no mistakes where they are found"
                parts.append(f"{crowds} region{'s' * (crowds > 1)} in {split} marked as crowds: {use}")
            if empty := sum(not self._read[split].labels_of(i) for i in self._chosen[split]):
                parts.append(f"{empty} image{'s' * (empty > 1)} in {split} without boxes")
        tied = [own.tied for own in dict.fromkeys(self._read.values()) if own.tied]
        return " ".join("; ".join([*parts, *tied, *self._compared]).split())  # one line, whatever the names

    def setup(self, stage: str) -> None:
        """Read the annotations, and those of the training split only to fit; split, and decide what is "auto".

        Args:
            stage: what the Trainer is about to do.

        Raises:
            FileNotFoundError: a folder, an annotation file or an image is not there.
            InputError: an annotation file contradicts itself, or the splits differ in their categories.
        """
        wanted = [split for split in ("val", "train") if split == "val" or stage == "fit"]
        if all(split in self._sets for split in wanted):
            return
        with hinting_at_kind(self.root, "detection"):
            files = find_coco(self.root, self.train_json, self.val_json, self.train_images, self.val_images)
        if "" in files:
            self._read_one(files[""], wanted)
        else:
            self._read_each(files, wanted)
        sizes = [(height, width) for own in dict.fromkeys(self._read.values()) for height, width in own.sizes.tolist()]
        if stage == "fit":
            self._compare()
        self._decide(sizes, len(self._chosen.get("train", sizes)))
        for split in wanted:
            if split not in self._sets:
                augment = split == "train" and self.augment
                size = self.data_config["size"] if split == "val" else None  # of the image that the network gets
                if augment:
                    size = min(self.min_size), self.max_size
                images = _CocoImages(self._read[split], self._chosen[split], split == "val", size, self.max_pixels)
                transform = self._train_transform() if augment else _plain()
                self._sets[split] = ReadableImages(images, transform, dense=True)

    def _compare(self) -> None:
        """Tell of images that are on both sides, and of those on none."""
        sides = {
            split: Listing.of_files(own.folder, [own.names[i] for i in self._chosen[split]])
            for split, own in self._read.items()
        }
        used = [own.folder / name for own in self._read.values() for name in own.names]
        roots = [self.root] if self.root else list(dict.fromkeys(own.folder for own in self._read.values()))
        unused = [unused_images(root, used, deep=root == self.root) for root in roots]
        self.also_trained_on, equal = equal_images(**sides) if len(sides) > 1 else (0, "")
        self._compared = [text for text in (*unused, equal) if text]

    def _annotations(self, files: CocoFiles) -> CocoAnnotations:
        return CocoAnnotations(files, self.with_masks, self.bad_annotations, self.zero_boxes, self.known_classes)

    def _read_each(self, files: dict[str, CocoFiles], wanted: Sequence[str]) -> None:
        if self.split not in (None, EVERY):
            raise InputError("data.split says which images of one file validate, but there is a file for each split")
        for split in wanted:
            if split in self._read:
                continue
            if split not in files:
                missing = f"data.{split}_json is missing"
                if not self.train_json and not self.val_json:
                    missing = f"data.root: {self.root} has no JSON file for {split}"
                raise InputError(f"{missing}: there is only {next(iter(files.values())).json}")
            annotations = self._annotations(files[split])
            for other in self._read.values():
                if problem := annotations.category_difference(other):
                    given = "data.train_json and data.val_json: " if self.train_json else ""
                    raise InputError(given + problem)
            self.class_names = annotations.class_names
            self._read[split], self._chosen[split] = annotations, list(range(len(annotations)))

    def _read_one(self, files: CocoFiles, wanted: Sequence[str]) -> None:
        annotations = next(iter(self._read.values()), None) or self._annotations(files)
        self.class_names = annotations.class_names
        names = annotations.names
        if self.split:
            chosen = read_split(self.split, names)
            self._how = f" (by {self.split})"
        elif len(names) < 2:
            raise InputError(f"{annotations.file} has a single image, of which no part can validate")
        else:
            order = sorted(range(len(names)), key=lambda i: natural_key(names[i]))
            drawn = draw_split([annotations.labels_of(i) for i in order], self.seed)
            chosen = {names[i]: "val" if val else "train" for i, val in zip(order, drawn, strict=True)}
            self._how = f" (drawn by seed {self.seed})"
        self.split_rows = [(name, chosen[name]) for name in names]
        for split in wanted:
            self._read[split] = annotations
            self._chosen[split] = [i for i, name in enumerate(names) if chosen[name] == split]
            if not self._counts(split) or not sum(self._counts(split)):
                raise InputError(f"{annotations.file}: no image in {split} has a box")

    def _decide(self, shapes: Sequence[tuple[int, int]], num_train: int) -> None:
        auto = self.min_size == "auto"
        side: Any = self.eval_size or ("auto" if auto else max(self.min_size))
        zoom = _ZOOM[-1] / 8 if auto and self.augment else 1.0
        decide_sizes(self, "eval_size", side, shapes, num_train, zoom)
        if auto:
            sizes = (
                [max(self.eval_size * eighths // 8, MIN_SIDE) for eighths in _ZOOM]
                if self.augment
                else [self.eval_size]
            )
            self.decide("min_size", tuple(sizes), "around data.eval_size")

    def _counts(self, split: str) -> tuple[int, ...]:
        if split not in self._read:
            return ()
        return tuple(self._read[split].class_counts(self._chosen[split]).tolist())

    def _train_transform(self) -> v2.Transform:
        return v2.Compose(
            [
                v2.RandomHorizontalFlip(self.hflip),
                *([AnyOrientation()] if self.orientation == "any" else []),
                v2.RandomShortestSize(self.min_size, self.max_size),
                v2.ClampBoundingBoxes(),  # the next one drops what reaches over the edge by a rounding error
                v2.SanitizeBoundingBoxes(labels_getter=_per_box),
                _plain(),
            ]
        )


def _path(name: str | None) -> Path | None:
    return Path(name).expanduser() if name else None


class _CocoImages(Dataset):
    def __init__(
        self,
        annotations: CocoAnnotations,
        chosen: Sequence[int],
        with_crowds: bool,
        size: tuple[int, int] | None,
        max_pixels: int | None,
    ) -> None:
        self.annotations, self.chosen = annotations, chosen
        self.with_crowds, self.size, self.max_pixels = with_crowds, size, max_pixels

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def listing(self) -> Listing:
        """The files."""
        return Listing.of_files(self.annotations.folder, [self.annotations.names[i] for i in self.chosen])

    def label_bytes(self, index: int) -> bytes:
        """Return what tells whether boxes were changed."""
        return self.annotations.label_bytes(self.chosen[index])

    def filename(self, index: int, absolute: bool = True) -> str:
        name = self.annotations.names[self.chosen[index]]
        return str(self.annotations.folder / name) if absolute else name

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        name = self.filename(index)
        image = tv_tensors.Image(v2.functional.pil_to_tensor(read_image(name, "RGB", self.max_pixels)))
        height, width = size = tuple(image.shape[-2:])
        listed = tuple(self.annotations.sizes[self.chosen[index]].tolist())
        if size != listed:
            raise AnnotationError(
                f"{name} is {width} x {height} (width x height), {self.annotations.file} says {listed[1]} x {listed[0]}"
                + frame_hint(name, listed)
            )
        check_side(name, height, width, self.size, "data.min_size and data.max_size")
        target = self.annotations.target(self.chosen[index], self.with_crowds)
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
