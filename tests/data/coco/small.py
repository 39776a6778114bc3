"""A data set in COCO's layout, three images a split, and the data module over it."""

import json

import numpy as np
from pycocotools import mask as coco_mask

from softmaxfree.data import CocoDataModule

SIZES = {11: (40, 60), 7: (50, 34), 5: (41, 37)}  # (height, width) by image id; in this order in the file
SQUARE = [[10, 8, 30, 8, 30, 28, 10, 28]]


def annotation(number, image, category, bbox, segmentation, iscrowd=0):
    area = bbox[2] * bbox[3]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": area,
        "iscrowd": iscrowd,
        "segmentation": segmentation,
    }


def content():
    """Image 11 has a polygon and a crowd, 7 is empty, 5 (grey) a coded mask; category ids have gaps."""
    crowd = {"size": [40, 60], "counts": [0, 400, 2000]}  # the ten leftmost columns
    coded = np.zeros((41, 37), np.uint8, order="F")
    coded[3:9, 5:20] = 1
    rle = {"size": [41, 37], "counts": coco_mask.encode(coded)["counts"].decode()}
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i, (height, width) in SIZES.items()
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}],
        "annotations": [
            annotation(1, 5, 90, [5, 3, 15, 6], rle),
            annotation(2, 11, 3, [10, 8, 20, 20], SQUARE),
            annotation(3, 11, 90, [0, 0, 10, 40], crowd, iscrowd=1),
        ],
    }


def write(root, split, data):
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(data))


def module(root, **arguments):
    defaults = {"batch_size": 3, "num_workers": 0, "with_masks": True, "min_size": [64, 80], "max_size": 96}
    return CocoDataModule(str(root), **{**defaults, **arguments})


def validate(root, **arguments):
    data = module(root, **arguments)
    data.setup("validate")
    return [data.on_before_batch_transfer(batch, 0) for batch in data.val_dataloader()]


def bad(change):
    """A file of annotations after `change(file's content, its first annotation)`."""
    data = content()
    change(data, data["annotations"][0])
    return data


def changed(entry, changes):
    entry.update(changes)
    for key in [key for key, value in changes.items() if value is ...]:
        del entry[key]
