"""How images of classes are read and prepared, and what becomes of those that cannot be."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import IterableDataset

from softmaxfree.errors import InputError
from tests.data.folders.small import labels, module, write_images


def test_grey_images(root):
    data = module(root, in_chans=1, mean=[0.5], std=[0.5])
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[0].shape == (4, 1, 24, 24)


def test_means_must_fit_the_channels(root):
    assert module(root, in_chans=1).data_config["mean"] == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert module(root, in_chans=1).data_config["std"] == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    with pytest.raises(ValueError, match=r"data.in_chans = 1 values"):
        module(root, in_chans=1, mean=[0.5])


@pytest.mark.parametrize("source", ["", "torch/image_folder"])
def test_images_are_read_as_they_are_shown(root, source):
    """Half grey in 16 bits, and turned by EXIF: white on the left in the file, on the top when shown."""
    (root / "val" / "cat" / "0.jpg").unlink()
    (root / "val" / "cat" / "1.jpg").unlink()
    Image.fromarray(np.full((24, 24), 32768, np.uint16)).save(root / "val" / "cat" / "0.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.zeros((24, 24, 3), np.uint8)
    pixels[:, :12] = 255
    Image.fromarray(pixels).save(root / "val" / "cat" / "1.png", exif=exif)
    data = module(root, source=source, crop_pct=1.0, mean=[0, 0, 0], std=[1, 1, 1])
    data.setup("fit")
    images, _ = next(iter(data.val_dataloader()))
    assert images[0].mean().item() == pytest.approx(0.5, abs=0.003)
    assert images[1][:, :10].min() > 0.9
    assert images[1][:, -10:].max() < 0.1


def test_training_images_are_augmented_and_others_are_not(root):
    data = module(root)
    data.setup("fit")
    train, val = data._sets["train"], data._sets["val"]
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(val[0][0], val[0][0])


def test_a_limit_of_pixels(root):
    write_images(root / "val" / "owl", 1, size=(60, 50))
    data = module(root, max_pixels=2999, batch_size=1)
    data.setup("fit")
    with pytest.raises(InputError, match=r"owl/0.jpg is 60 high and 50 wide, .* max_pixels = 2999; with --data.on_"):
        labels(data, data.val_dataloader())
    with pytest.raises(InputError, match=r"data.max_pixels must be 1 or more, or null"):
        module(root, max_pixels=0)


class Failing:
    """A transform that fails on some images."""

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image):
        if image.size == (50, 60):
            raise ZeroDivisionError("a strip")
        return self.transform(image)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_transform_counts_as_unreadable(root, workers):
    write_images(root / "val" / "dog", 1, size=(60, 50))
    for on_error in ("skip", "fail"):
        data = module(root, on_error=on_error, num_workers=workers)
        data.setup("fit")
        data._sets["val"].transform = Failing(data._sets["val"].transform)
        if on_error == "skip":
            with pytest.warns(UserWarning, match=r"^1 unreadable image left out: .*dog/0.jpg: ZeroDivisionError: a"):
                assert labels(data, data.val_dataloader()) == [0, 0, 1, 2, 2]
        else:
            with pytest.raises(InputError, match=r"^unreadable image: .*dog/0.jpg: ZeroDivisionError: a strip; with"):
                labels(data, data.val_dataloader())


def test_a_split_without_readable_images(root):
    for path in (root / "val").rglob("*.jpg"):
        path.write_text(f"text of {path}")
    data = module(root, on_error="skip", batch_size=6)
    data.setup("fit")
    with pytest.raises(InputError, match=r"none of the 6 images can be read; the first: .*cat/0.jpg"):
        labels(data, data.val_dataloader())


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
    message = " ".join(str(warning.message) for warning in caught)
    assert "2 unreadable images left out" in message
    assert "cat/0.jpg cannot be read: it is no image of a known format" in message
    assert "dog/1.jpg cannot be read: image file is truncated" in message


def test_the_images_of_a_class_that_are_told_are_those_that_were_read(root):
    (root / "train" / "dog" / "0.jpg").write_text("not an image")
    data = module(root, on_error="skip", batch_size=3)
    data.setup("fit")
    before = data.class_counts
    samples = [sample for sample in data._sets["train"] if sample is not None]
    assert data.class_counts == tuple(count - (i == 1) for i, count in enumerate(before))
    assert sum(data.class_counts) == len(samples) == sum(before) - 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_run(root, workers):
    break_images(root)
    data = module(root, num_workers=workers, batch_size=1)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"unreadable image: .*cat/0.jpg .*--data.on_error skip"):
        labels(data, data.val_dataloader())


def test_a_batch_without_readable_images(root):
    """It is no batch; the others go on."""
    break_images(root)
    data = module(root, on_error="skip", batch_size=1)
    data.setup("fit")
    with pytest.warns(UserWarning, match=r"unreadable images? left out"):
        batches = [data.on_before_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert sum(batch is None for batch in batches) == 2
    assert len(batches) > 2


def test_a_strip_that_would_fill_the_memory(root):
    """Of 60 kB; 4 GB once its shorter side is 24."""
    Image.new("L", (8_000_000, 1)).save(root / "val" / "dog" / "0.png")
    data = module(root, on_error="skip")
    data.setup("fit")
    message = r"dog/0.png: the image is 1 high and 8000000 wide, and 27 and 216000000 when its shorter side is resized"
    with pytest.warns(UserWarning, match=message):
        assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


class Stream(IterableDataset):
    """As timm's: the transform is set from outside."""

    transform: Any = None

    def __iter__(self):
        yield self.transform(Image.fromarray(np.full((30, 40), 32768, np.uint16))), 1


def test_a_streamed_image_is_converted(root):
    data = module(root, crop_pct=1.0, mean=[0, 0, 0], std=[1, 1, 1])
    image, _ = next(iter(data._prepare("val", Stream())))
    assert image.mean().item() == pytest.approx(0.5, abs=0.003)
