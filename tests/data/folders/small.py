"""Folders of three classes, and the data module over them."""

import tarfile

import numpy as np
from PIL import Image

from softmaxfree.data import ImageFolderDataModule

CLASSES = ("cat", "dog", "owl")


def write_images(folder, count, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(folder.as_posix().encode()))  # else both splits had the same images
    for i in range(count):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")


def module(root, **arguments):
    return ImageFolderDataModule(str(root), **{"img_size": 24, "batch_size": 4, "num_workers": 0, **arguments})


def labels(data, loader):
    """Labels of all batches, by way of what the Trainer calls on each."""
    out = []
    for batch in loader:
        images, batch_labels = data.on_before_batch_transfer(batch, 0)
        assert images.shape[1:] == (3, 24, 24)
        out += batch_labels.tolist()
    return out


def into_tars(root, folder="."):
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            tar.add(root / split, arcname=folder.format(split))
        (root / split).rename(root / f"away_{split}")
