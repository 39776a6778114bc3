import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from softmaxfree.data import ImageFolderDataModule

CLASSES = ("cat", "dog", "owl")


def write_images(folder, count, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")


@pytest.fixture
def root(tmp_path):
    """A training split of 12 and a validation split of 6 images."""
    for name in CLASSES:
        write_images(tmp_path / "train" / name, 4)
        write_images(tmp_path / "val" / name, 2)
    return tmp_path


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


@pytest.mark.parametrize("workers", [0, 2])
def test_splits_and_classes(root, workers):
    data = module(root, num_workers=workers)
    data.setup("fit")
    assert data.class_names == CLASSES
    assert data.num_classes == 3
    assert sorted(labels(data, data.train_dataloader())) == sorted([0, 1, 2] * 4)
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


def test_validation_is_another_name_for_val(root):
    (root / "val").rename(root / "validation")
    data = module(root)
    data.setup("fit")
    assert len(labels(data, data.val_dataloader())) == 6


def test_grey_images(root):
    data = module(root, in_chans=1, mean=[0.5], std=[0.5])
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[0].shape == (4, 1, 24, 24)


def test_means_must_fit_the_channels(root):
    with pytest.raises(ValueError, match=r"data.in_chans = 1 values"):
        module(root, in_chans=1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm's reader never closes its tar files
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tar_files(root):
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            tar.add(root / split, arcname=".")
        (root / split).rename(root / f"away_{split}")
    data = module(root)
    data.setup("fit")
    assert data.class_names == CLASSES
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


def test_a_source_of_timm(root):
    data = module(root, source="torch/image_folder")
    data.setup("fit")
    assert data.class_names == CLASSES
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


def test_training_images_are_augmented_and_others_are_not(root):
    data = module(root)
    data.setup("fit")
    train, val = data._sets["train"], data._sets["val"]
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(val[0][0], val[0][0])


def test_a_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root: there is no folder .*nowhere"):
        module(tmp_path / "nowhere").setup("fit")


def test_a_missing_split(root):
    (root / "val").rename(root / "away")
    with pytest.raises(ValueError, match=r"needs a folder val or validation; it holds away, train"):
        module(root).setup("fit")


def test_an_empty_split(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images in .*train"):
        module(tmp_path).setup("fit")


def test_classes_that_differ(root):
    (root / "val" / "owl").rename(root / "val" / "eagle")
    with pytest.raises(ValueError, match=r"differ: only in train: owl; only in val: eagle"):
        module(root).setup("fit")


def test_images_outside_the_class_folders(root):
    write_images(root / "train", 1)
    with pytest.raises(ValueError, match=r"outside any class folder"):
        module(root).setup("fit")


def break_images(root):
    """A file that is no image, and one that ends in the middle; both are first in their batches."""
    (root / "val" / "cat" / "0.jpg").write_text("not an image")
    whole = (root / "val" / "dog" / "1.jpg").read_bytes()
    (root / "val" / "dog" / "1.jpg").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_and_named(root, workers):
    break_images(root)
    data = module(root, on_error="skip", num_workers=workers, batch_size=3)
    data.setup("fit")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = labels(data, data.val_dataloader())
    assert seen == [0, 1, 2, 2]
    message = str(caught[-1].message)
    assert message.startswith("2 unreadable images left out")
    assert "cat/0.jpg (cannot identify image file" in message
    assert "dog/1.jpg (image file is truncated" in message


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_run(root, workers):
    break_images(root)
    data = module(root, num_workers=workers, batch_size=1)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"unreadable image .*cat/0.jpg .*--data.on_error skip"):
        labels(data, data.val_dataloader())


def test_a_batch_without_readable_images(root):
    break_images(root)
    data = module(root, on_error="skip", batch_size=1)
    data.setup("fit")
    with (
        pytest.warns(UserWarning, match=r"1 unreadable images left out"),
        pytest.raises(ValueError, match=r"no image"),
    ):
        labels(data, data.val_dataloader())
