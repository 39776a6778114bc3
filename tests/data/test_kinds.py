"""Data of one task that are given to another."""

import json

import numpy as np
import pytest
from PIL import Image

from softmaxfree.data import CocoDataModule, ImageFolderDataModule, MaskFolderDataModule
from softmaxfree.errors import InputError

MODULES = {
    "classification": ImageFolderDataModule,
    "detection": CocoDataModule,
    "segmentation": MaskFolderDataModule,
}


def picture(path, value=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40), value, np.uint8)).save(path)


def masks(root):
    for i in range(4):
        picture(root / "images" / f"{i}.jpg")
        picture(root / "labels" / f"{i}_mask.png", i % 2)


def split_masks(root):
    for split in ("train", "val"):
        for i in range(2):
            picture(root / split / "Images" / f"{i}.png")
            picture(root / split / "masks" / f"{i}.png", i)


def classes(root):
    for name in ("cat", "dog"):
        for i in range(2):
            picture(root / name / f"{i}.png")


def split_classes(root):
    classes(root / "train")
    classes(root / "val")


def coco(root):
    picture(root / "images" / "0.png")
    (root / "annotations").mkdir()
    (root / "annotations" / "mine.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))


MADE = {
    masks: "segmentation",
    split_masks: "segmentation",
    classes: "classification",
    split_classes: "classification",
    coco: "detection",
}


@pytest.mark.filterwarnings("ignore:.*class folder without images")
@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("task", MODULES)
def test_the_task_that_is_meant_is_named(tmp_path, make, task):
    if MADE[make] == task:
        pytest.skip("is what it is for")
    make(tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path}.* `softmaxfree train {MADE[make]}`$"):
        MODULES[task](str(tmp_path)).setup("fit")


def test_folders_of_other_files_are_classes(tmp_path):
    for name in ("image", "mask"):
        for i in range(3):
            picture(tmp_path / name / f"{name} {i}.png", 10 * i + len(name))
    data = ImageFolderDataModule(str(tmp_path))
    data.setup("fit")
    assert data.class_names == ("image", "mask")
