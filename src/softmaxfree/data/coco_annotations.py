"""A COCO `instances` file, checked once and kept as arrays, which worker processes share without copies."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softmaxfree.errors import InputError

__all__ = ["CocoAnnotations"]


class CocoAnnotations:
    """The images and instances of one `instances_*.json`.

    Args:
        file: the JSON file.
        folder: folder of its images.
        with_masks: whether each instance needs a mask (polygons, or a run-length code).
        zero_boxes: what a box without width or height does: it is left out, or an error.

    Attributes:
        category_ids: of the file, sorted; label i stands for the i-th.
        class_names: in the order of labels.
        image_ids: one an image.
        names: file name of each image, within `folder`.
        sizes: (images, 2) height and width of each image.

    Raises:
        FileNotFoundError: the file, the folder or an image is not there.
        ValueError: the file contradicts itself; the message names the entry.
    """

    def __init__(self, file: Path, folder: Path, with_masks: bool, zero_boxes: Literal["drop", "fail"]) -> None:
        self.file = file
        self.folder = folder
        content = _load(file)
        try:
            categories = sorted(content["categories"], key=lambda category: category["id"])
            self.category_ids = tuple(int(category["id"]) for category in categories)
            self.class_names = tuple(str(category["name"]) for category in categories)
            images = content["images"]
            self.image_ids = [int(image["id"]) for image in images]
            self.names = [str(image["file_name"]) for image in images]
            self.sizes = np.array([(image["height"], image["width"]) for image in images], np.int64).reshape(-1, 2)
            instances = content["annotations"]
            rows = np.array(
                [
                    (*row["bbox"], row.get("area", row["bbox"][2] * row["bbox"][3]), row.get("iscrowd", 0))
                    for row in instances
                ],
                np.float64,
            ).reshape(-1, 6)
            owners = self._positions([row["image_id"] for row in instances], self.image_ids, instances, "image")
            labels = self._positions(
                [row["category_id"] for row in instances], self.category_ids, instances, "category"
            )
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(f"{file} lacks an entry of the COCO format: {error!r}") from error
        self._check_images()
        keep = self._check_boxes(rows, owners, instances, zero_boxes)
        order = keep[np.argsort(owners[keep], kind="stable")]  # an image's instances side by side
        self._ends = np.searchsorted(owners[order], np.arange(len(images)), side="right")
        rows = rows[order]
        self._boxes = torch.from_numpy(np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)).float()
        self._areas = torch.from_numpy(rows[:, 4]).float()
        self._crowds = torch.from_numpy(rows[:, 5] != 0)
        self._labels = torch.from_numpy(labels[order])
        self._masks = [self._compact(instances[i], self.sizes[owners[i]]) for i in order] if with_masks else None

    def __len__(self) -> int:
        return len(self.names)

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

    def _positions(self, ids: list, known: Any, instances: list, what: str) -> NDArray[np.int64]:
        position = {key: i for i, key in enumerate(known)}
        if len(position) != len(known):
            raise InputError(f"{self.file}: two {what} entries have the same id")
        for key, row in zip(ids, instances, strict=True):
            if key not in position:
                raise InputError(
                    f"{self.file}: annotation {row['id']} is of {what} {key}, which the file does not list"
                )
        return np.array([position[key] for key in ids], np.int64)

    def _check_images(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"data.root: there is no folder {self.folder}, whose images {self.file} lists")
        if not self.names:
            raise InputError(f"{self.file} lists no images")
        present = set(os.listdir(self.folder))  # one call, where a look at each file takes minutes on network disks
        absent = [name for name in self.names if name not in present and not (self.folder / name).is_file()]
        if absent:
            raise FileNotFoundError(
                f"{self.file} lists {absent[0]}, which is not in {self.folder} ({len(absent)} of {len(self)} absent)"
            )

    def _check_boxes(self, rows: NDArray, owners: NDArray, instances: list, zero_boxes: str) -> NDArray[np.int64]:
        """Returns the indices of the boxes to keep."""
        x, y, width, height = rows[:, :4].T
        image_height, image_width = self.sizes[owners].T
        # not `<=`: NaN must be caught too
        empty = ~((width > 0) & (height > 0))
        outside = ~((x < image_width) & (y < image_height) & (x + width > 0) & (y + height > 0))
        for bad, what in ((empty, "has no width or no height"), (outside & ~empty, "lies outside its image")):
            if bad.any() and not (bad is empty and zero_boxes == "drop"):
                row = instances[int(bad.argmax())]
                hint = "; data.zero_boxes = drop leaves such boxes out" if bad is empty else ""
                raise InputError(
                    f"{self.file}: the box {row['bbox']} of annotation {row['id']} (image {row['image_id']}) {what} "
                    f"({int(bad.sum())} such boxes){hint}"
                )
        return np.flatnonzero(~empty)

    def _compact(self, row: dict[str, Any], size: NDArray) -> Any:
        """Returns a mask as an RLE or as arrays of polygons: lists of numbers take five times the memory."""
        from pycocotools import mask as coco_mask

        where = f"{self.file}: the mask of annotation {row['id']} (image {row['image_id']})"
        segmentation = row.get("segmentation")
        height, width = size.tolist()
        if isinstance(segmentation, dict):
            if list(segmentation.get("size", ())) != [height, width]:
                raise InputError(f"{where} has the size {segmentation.get('size')}, its image {[height, width]}")
            counts = segmentation["counts"]
            return coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
        if not segmentation or any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
            raise InputError(f"{where} is neither a run-length code nor polygons of at least 3 points")
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
        for polygon in polygons:
            x, y = polygon[0::2].max(), polygon[1::2].max()
            if not (x <= width + 1 and y <= height + 1):  # annotation tools round
                raise InputError(f"{where} reaches to ({x:g}, {y:g}), its image is {width} wide and {height} high")
        return polygons


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"data.root: there is no file {file}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file} is not a JSON file: {error}") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise InputError(f"{file} is not a COCO instances file: it has no {', '.join(missing)}")
    return content


def _decode(mask: Any, height: int, width: int) -> Tensor:
    from pycocotools import mask as coco_mask

    rle = mask if isinstance(mask, dict) else coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    return torch.from_numpy(coco_mask.decode(rle))
