"""A COCO `instances` file, checked once and kept as arrays, which worker processes share without copies."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from softmaxfree.data.coco_checks import (
    KnownIds,
    annotation_problem,
    category_problem,
    image_problem,
    is_zero_box,
    repeated,
)
from softmaxfree.data.coco_layout import CocoFiles
from softmaxfree.data.dense_sizes import shown_shapes
from softmaxfree.data.images import frame_hint
from softmaxfree.errors import InputError
from softmaxfree.printing import few

__all__ = ["CocoAnnotations"]

_MOST_HEADS = 10_000  # image files whose heads are read


class CocoAnnotations:
    """The images and instances of one `instances_*.json`.

    Args:
        files: the JSON file, and where its images may be.
        with_masks: whether each instance needs a mask (polygons, or a run-length code).
        bad: what a bad annotation does: it is left out, named and counted, or an error.
        zero_boxes: the same of a box without width or height.
        known_classes: by which categories are numbered that are some of these, or these in another order.

    Attributes:
        category_ids: of the file, sorted; without known classes label i stands for the i-th.
        class_names: in the order of labels.
        image_ids: one an image.
        names: file name of each image, within `folder`.
        folder: of the images.
        tied: in words which other known folders have the images too; empty if none has.
        sizes: (images, 2) height and width of each image.

    Raises:
        FileNotFoundError: the file, the folder or an image is not there.
        InputError: the file contradicts itself, or nothing is left; the message names the entry.
    """

    def __init__(
        self,
        files: CocoFiles,
        with_masks: bool,
        bad: Literal["drop", "fail"] = "fail",
        zero_boxes: Literal["drop", "fail"] = "fail",
        known_classes: Sequence[str] = (),
    ) -> None:
        self.file = files.json
        content = _load(files.json)
        categories, images = content["categories"], content["images"]
        self._check("categories", categories, category_problem)
        self._check("images", images, image_problem)
        categories = sorted(categories, key=lambda category: category["id"])
        self.category_ids = tuple(int(category["id"]) for category in categories)
        self.class_names = self._unlike([category["name"].strip() for category in categories])
        self.image_ids = [int(image["id"]) for image in images]
        self.names = _of_this_system([image["file_name"] for image in images], (*files.folders, *files.others))
        sizes = [(int(image["height"]), int(image["width"])) for image in images]
        self.sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self.tied = ""
        self.folder = self._choose(files)
        self._check_files((*files.folders, *files.others))
        labels = _positions(self.category_ids)
        if set(self.class_names) <= set(known_classes):
            labels = {key: known_classes.index(self.class_names[i]) for key, i in labels.items()}
            self.class_names = tuple(known_classes)
        self._check_sizes()
        known = KnownIds(_positions(self.image_ids), labels, sizes)
        instances = self._good(content["annotations"], known, with_masks, {"bad": bad, "zero": zero_boxes})
        owners = np.array([known.images[row["image_id"]] for row in instances], np.int64)
        order = np.argsort(owners, kind="stable").tolist()  # an image's instances side by side
        self._ends = np.searchsorted(owners[order], np.arange(len(images)), side="right")
        self._owners = torch.from_numpy(owners[order])
        instances = [instances[i] for i in order]
        boxes = np.array([row["bbox"] for row in instances], np.float64)
        areas = [row.get("area", row["bbox"][2] * row["bbox"][3]) for row in instances]
        self._boxes = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)).float()
        self._areas = torch.tensor(areas, dtype=torch.float64).float()
        self._crowds = torch.tensor([bool(row.get("iscrowd", 0)) for row in instances])
        self._labels = torch.tensor([known.categories[row["category_id"]] for row in instances])
        self._masks = (
            [_compact(row, sizes[owners[i]]) for i, row in zip(order, instances, strict=True)] if with_masks else None
        )

    def __len__(self) -> int:
        return len(self.names)

    def class_counts(self, indices: Sequence[int]) -> Tensor:
        """Return how many boxes of each class some images have, crowds left out; int64 (classes,)."""
        return self._labels[self._of(indices) & ~self._crowds].bincount(minlength=len(self.class_names))

    def num_crowds(self, indices: Sequence[int]) -> int:
        """Return how many regions of some images are marked as crowds."""
        return int((self._of(indices) & self._crowds).sum())

    def _of(self, indices: Sequence[int]) -> Tensor:
        wanted = torch.zeros(len(self), dtype=torch.bool)
        wanted[list(indices)] = True
        return wanted[self._owners]

    def labels_of(self, index: int) -> set[int]:
        """Return the labels that occur in an image, crowds left out."""
        begin, end = int(self._ends[index - 1]) if index else 0, int(self._ends[index])
        return set(self._labels[begin:end][~self._crowds[begin:end]].tolist())

    def label_bytes(self, index: int) -> bytes:
        """Return what tells whether the instances of an image were changed: classes, boxes, crowds and masks."""
        own = slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
        arrays = [part.numpy() for part in (self._labels[own], self._boxes[own], self._crowds[own])]
        masks = [] if self._masks is None else self._masks[own]
        arrays += [polygon for mask in masks if isinstance(mask, list) for polygon in mask]
        coded = [mask for mask in masks if not isinstance(mask, list)]
        return b"".join(array.tobytes() for array in arrays) + repr(coded).encode()

    def target(self, index: int, with_crowds: bool) -> dict[str, Any]:
        """Return the instances of an image.

        Args:
            index: of the image.
            with_crowds: whether regions marked as crowds are among them.

        Returns:
            `boxes (n, 4)` float32 x1 y1 x2 y2 in pixels, `labels (n,)` int64, `iscrowd (n,)` bool,
            `area (n,)` float32, `image_id`, and with masks `masks (n, height, width)` uint8.
        """
        begin = int(self._ends[index - 1]) if index else 0
        chosen = torch.arange(begin, int(self._ends[index]))
        if not with_crowds:
            chosen = chosen[~self._crowds[chosen]]
        target = {
            "boxes": self._boxes[chosen],
            "labels": self._labels[chosen],
            "iscrowd": self._crowds[chosen],
            "area": self._areas[chosen],
            "image_id": self.image_ids[index],
        }
        if self._masks is not None:
            height, width = self.sizes[index].tolist()
            masks = [_decode(self._masks[i], height, width) for i in chosen.tolist()]
            target["masks"] = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8)
        return target

    def _check(self, section: str, entries: list, problem_of: Callable[[Any], str | None]) -> None:
        if not entries:
            raise InputError(f"{self.file} lists no {section}")
        seen: dict[tuple, int] = {}
        for i, entry in enumerate(entries):
            if problem := problem_of(entry):
                raise InputError(f"{self.file}: {section}[{i}] {problem}")
            for key in ("id", "file_name"):
                value = PurePath(entry[key]) if key == "file_name" and key in entry else entry.get(key)  # ./a is a
                if key in entry and (first := seen.setdefault((key, value), i)) != i:
                    raise InputError(f"{self.file}: {section}[{first}] and [{i}] have the same {key}, {entry[key]!r}")

    def _unlike(self, names: list[str]) -> tuple[str, ...]:
        """The names of categories, those of the same name with their ids."""
        same = {name for name, count in Counter(names).items() if count > 1}
        if not same:
            return tuple(names)
        unlike = [
            f"{name} (id {key})" if name in same else name for name, key in zip(names, self.category_ids, strict=True)
        ]
        if len(set(unlike)) < len(unlike):
            raise InputError(f"{self.file} has the category {min(same)} {names.count(min(same))} times; rename them")
        told = [name for name, old in zip(unlike, names, strict=True) if old in same]
        rank_zero_warn(f"{self.file} has categories of the same name, which are classes of their own: {few(told)}")
        return tuple(unlike)

    def category_difference(self, other: "CocoAnnotations") -> str:
        """Return in words how the categories differ from those of another file, empty if they do not."""
        if self.class_names == other.class_names:
            return ""
        only = [
            f"only in {one.file}: {few(names)}"
            for one, two in ((self, other), (other, self))
            if (names := [name for name in one.class_names if name not in two.class_names])
        ]
        if only:
            return f"{self.file} has other categories than {other.file}: {'; '.join(only)}"
        i = next(i for i, name in enumerate(self.class_names) if name != other.class_names[i])
        first, second = (f"{one.category_ids[i]} is {one.class_names[i]} in {one.file}" for one in (self, other))
        return f"the categories have other ids, so another order: {first}, {second}; number them alike"

    def _choose(self, files: CocoFiles) -> Path:
        """The folder in which most images are, of those that are looked for: a hundred, from all parts of the list."""
        some = self.names[:: len(self.names) // 100 + 1]
        counts = {folder: sum((folder / name).is_file() for name in some) for folder in (*files.folders, *files.others)}
        most = max(counts.values())
        unlike: dict[Path, Path] = {}  # a link is the folder that it shows
        for folder in counts:
            if counts[folder] == most:
                unlike.setdefault(folder.resolve(), folder)
        best = list(unlike.values())
        if most == 0 or len(best) == 1:
            return best[0]
        named = few(list(map(str, best[1:])), 5)
        if best[0] not in files.folders:
            raise InputError(
                f"{self.file}: its images are in {best[0]} and in {named}; data.train_images (or data.val_images) "
                "names one"
            )
        self.tied = f"images of the same names also in {named}"
        return best[0]

    def _check_files(self, folders: Sequence[Path]) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"data.root: there is no folder {self.folder}, whose images {self.file} lists")
        present = set(os.listdir(self.folder))  # one call, where a look at each file takes minutes on network disks
        absent = [name for name in self.names if name not in present and not (self.folder / name).is_file()]
        if absent:
            raise FileNotFoundError(
                f"{self.file} lists {absent[0]}, which is not in {self.folder} ({len(absent)} of {len(self)} absent)"
                + (f"; looked for in {few(list(map(str, folders)), 6)}" if len(folders) > 1 else "")
            )

    def _check_sizes(self) -> None:
        """Compare the heads of image files with what is listed; of very many files, some from all parts of the list."""
        some = range(0, len(self), len(self) // _MOST_HEADS + 1)
        shapes = shown_shapes(self.folder / self.names[i] for i in some)
        wrong = [(i, own) for i, own in zip(some, shapes, strict=True) if own and own != tuple(self.sizes[i].tolist())]
        if wrong:
            i, (height, width) = wrong[0]
            listed = tuple(self.sizes[i].tolist())
            name = str(self.folder / self.names[i])
            raise InputError(
                f"{name} is {width} x {height} (width x height), {self.file} says {listed[1]} x {listed[0]} "
                f"({len(wrong)} of {len(some)} differ){frame_hint(name, listed)}"
            )

    def _good(self, entries: list, known: KnownIds, with_masks: bool, what_to_do: dict[str, str]) -> list[dict]:
        """The annotations that can be used."""
        if (
            with_masks
            and entries
            and not any(isinstance(entry, dict) and entry.get("segmentation") for entry in entries)
        ):
            raise InputError(
                f"{self.file} has no masks: none of its {len(entries)} annotations has a segmentation, which "
                "data.with_masks needs; --model.head retinanet --data.with_masks false takes the boxes alone"
            )
        good, left_out = [], []
        for i, entry in enumerate(entries):
            problem = annotation_problem(entry, known, with_masks)
            if problem is None:
                good.append(entry)
                continue
            message = f"{_named(entry, i)} {problem}"
            zero = is_zero_box(entry)
            if "drop" not in (what_to_do["bad"], what_to_do["zero"] if zero else "fail"):
                option = "zero_boxes" if zero else "bad_annotations"
                raise InputError(f"{self.file}: {message}; --data.{option} drop leaves such out")
            left_out.append(message)
        if left_out:
            rank_zero_warn(
                f"{self.file}: {len(left_out)} of {len(entries)} annotations left out; the first: {left_out[0]}"
            )
        if again := repeated(good):
            rank_zero_warn(f"{self.file}: {again}")
        if all(entry.get("iscrowd", 0) for entry in good):
            crowds = f" but {len(good)} crowds" if good else ""
            raise InputError(f"{self.file} has no annotations{crowds}: there is nothing to train on or to measure")
        if all(max(entry["bbox"]) <= 1 for entry in good):
            raise InputError(
                f"{self.file}: all boxes lie in the first pixel of their images, such as {good[0]['bbox']} of "
                f"{_named(good[0], 0)}: they seem to be parts of the image's sides; write pixels"
            )
        return good


def _of_this_system(names: list[str], folders: Sequence[Path]) -> list[str]:
    """The names with the slashes of this system, where a file of Windows has others and none is there as written."""
    written = [name for name in names if "\\" in name]
    if not written or any((folder / written[0]).is_file() for folder in folders):
        return names
    return [name.replace("\\", "/") for name in names]


def _positions(ids: Sequence[int]) -> dict[int, int]:
    return {key: i for i, key in enumerate(ids)}


def _named(entry: Any, index: int) -> str:
    if not isinstance(entry, dict) or "id" not in entry:
        return f"annotations[{index}]"
    return f"annotation {entry['id']} (image {entry.get('image_id')})"


def _compact(row: dict[str, Any], size: tuple[int, int]) -> Any:
    """A mask as an RLE or as arrays of polygons: lists of numbers take five times the memory."""
    from pycocotools import mask as coco_mask

    segmentation = row["segmentation"]
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, str):
            return segmentation
        return coco_mask.frPyObjects({"size": list(size), "counts": [int(n) for n in counts]}, *size)
    return [np.asarray(polygon, np.float64) for polygon in segmentation]


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"data.root: there is no file {file}")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        why = "its brackets are nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{file} is not a JSON file: {why}") from error
    needed = ("images", "annotations", "categories")
    missing = [key for key in needed if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise InputError(f"{file} is not a COCO instances file: it has no list of {', '.join(missing)}")
    return content


def _decode(mask: Any, height: int, width: int) -> Tensor:
    from pycocotools import mask as coco_mask

    rle = mask if isinstance(mask, dict) else coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    return torch.from_numpy(coco_mask.decode(rle))
