import gzip
import tarfile
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import IterableDataset

from softmaxfree.data import ImageFolderDataModule
from softmaxfree.errors import InputError

CLASSES = ("cat", "dog", "owl")


def write_images(folder, count, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(folder.as_posix().encode()))  # else both splits had the same images
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


def into_tars(root, folder="."):
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            tar.add(root / split, arcname=folder.format(split))
        (root / split).rename(root / f"away_{split}")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("folder", [".", "{}"])
def test_tar_files(root, folder, workers):
    plain = module(root)
    plain.setup("fit")
    wanted = torch.cat([images for images, _ in plain.val_dataloader()])
    into_tars(root, folder)
    data = module(root, num_workers=workers)
    data.setup("fit")
    assert data.class_names == CLASSES
    assert data._sets["val"][0] is not None  # an open file would be shared with the workers
    for _ in range(2):
        assert torch.equal(torch.cat([images for images, _ in data.val_dataloader()]), wanted)
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("around", ["", "photos/"])
def test_both_splits_in_a_tar(root, around):
    for name in ("0.jpg", "extra/0.jpg", "extra/1.jpg"):
        write_images((root / name).parent, 2)
    plain = module(root)
    plain.setup("fit")
    assert plain.found.endswith("; 12 to train, 6 to validate (in val); not used: extra, 2 .jpg")
    with tarfile.open(root / "all.tar", "w") as tar:
        for name in ("train", "val", "extra", "0.jpg", "1.jpg"):
            tar.add(root / name, arcname=around + name)
    data = module(root / "all.tar")
    data.setup("fit")
    assert data.found == plain.found.replace(str(root), str(root / "all.tar"))
    assert "18 images of 3 classes (6 each: cat, dog, owl)" in data.found
    assert torch.equal(*(torch.cat([images for images, _ in each.val_dataloader()]) for each in (data, plain)))
    assert data._sets["val"].dataset.filename(0) == str(root / "all.tar" / around / "val" / "cat" / "0.jpg")


def test_a_tar_with_one_split_or_one_folder(root):
    for name, message in (
        ("photos", r"of one class, photos; .* put them into .*one.tar itself, without photos$"),
        ("val", r"one.tar needs a folder train or training beside .*one.tar/val; it holds val$"),
    ):
        with tarfile.open(root / "one.tar", "w") as tar:
            tar.add(root / "val", arcname=name)
        with pytest.raises(InputError, match=message):
            module(root / "one.tar").setup("fit")
    into_tars(root, "{}")
    data = module(root / "train.tar")
    data.setup("fit")
    assert data.class_names == CLASSES
    assert data.split_rows[0][0] == "train/cat/0.jpg"


def test_what_lies_beside_the_splits_is_told(root):
    for name in ("s0.PNG", "s1.png", "notes.txt", ".DS_Store", ".git/a"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    data = module(root)
    data.setup("fit")
    assert data.found.endswith("; not used: 2 .png, 1 .txt, 1 hidden")
    (root / "val").rename(root.parent / "away")
    data = module(root)
    data.setup("fit")
    assert data.found.endswith("; not used: 2 .png, 1 .txt, 1 hidden")


def test_tars_in_a_tar(root):
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for name in CLASSES:
                with tarfile.open(root / f"{name}.tar", "w") as inner:
                    inner.add(root / split / name, arcname=".")
                tar.add(root / f"{name}.tar", arcname=f"{name}.tar")
        (root / split).rename(root / f"away_{split}")
    data = module(root)
    data.setup("fit")
    assert data.class_names == CLASSES
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


def test_a_broken_tar(root):
    into_tars(root)
    whole = (root / "val.tar").read_bytes()
    for content in (whole[: whole.index(b"1.jpg") + 700], gzip.compress(whole), b"text"):
        (root / "val.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"val.tar is no whole, uncompressed tar file"):
            module(root).setup("fit")


@pytest.mark.parametrize("tar", [False, True])
def test_a_class_is_the_first_folder(root, tar):
    """`dog/day` and `cat/day` are no class `day`."""
    for split in ("train", "val"):
        for name in CLASSES:
            for time in ("day", "night/late"):
                write_images(root / split / name / time, 1)
    if tar:
        into_tars(root)
    data = module(root)
    data.setup("fit")
    assert data.class_names == CLASSES
    assert labels(data, data.val_dataloader()) == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("tar", [False, True])
def test_what_is_left_out_is_told_once(root, tar):
    for split in ("train", "val"):
        (root / split / "owl" / "0.jpg").rename(root / split / "owl" / "0 größer 5².JFIF")
        for name in (
            "notes.txt",
            "cat/labels.xml",
            "cat/more.xml",
            "dog/._0.jpg",
            ".c/0.jpg",
            ".c/1.jpg",
            "__MACOSX/0.jpg",
            "cat/.0.jpg",
        ):
            (root / split / name).parent.mkdir(exist_ok=True)
            (root / split / name).touch()
    if tar:
        into_tars(root)
    data = module(root)
    with pytest.warns(UserWarning, match=r"left out") as caught:
        data.setup("fit")
    suffix = ".tar" if tar else ""
    told = [
        f"{root / split}{suffix}: 6 files and folders left out: 3 hidden, 2 .xml, 1 .txt" for split in ("train", "val")
    ]
    assert [str(warning.message) for warning in caught] == told
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


def test_an_empty_class_is_told(root):
    for split in ("train", "val"):
        (root / split / "emu").mkdir()
    with pytest.warns(UserWarning, match=r"1 class folder without images \(emu\)"):
        module(root).setup("fit")


def test_a_class_map(root):
    data = module(root, source_args={"class_map": {"owl": 0, "cat": 1}})
    with pytest.warns(UserWarning, match=r"left out") as caught:
        data.setup("fit")
    told = [str(warning.message).split(": ", 1)[1] for warning in caught]
    assert told == [f"{n} files left out: {n} of no class in class_map" for n in (4, 2)]
    assert data.class_names == ("owl", "cat")
    assert labels(data, data.val_dataloader()) == [1, 1, 0, 0]
    with pytest.warns(UserWarning, match=r"there are no images of yak, of data.source_args.class_map$"):
        module(root, source_args={"class_map": {"cat": 0, "dog": 1, "owl": 2, "yak": 3}}).setup("fit")
    for wrong in ({"owl": 0, "cat": 5}, "nowhere.txt"):
        with pytest.raises(InputError, match=r"data.source_args.class_map"):
            module(root, source_args={"class_map": wrong}).setup("fit")
    with (
        pytest.warns(UserWarning, match=r"of no class in class_map"),
        pytest.raises(InputError, match=r"images of none of its classes, yak, gnu"),
    ):
        module(root, source_args={"class_map": {"yak": 0, "gnu": 1}}).setup("fit")
    with pytest.raises(InputError, match=r"may be class_map, got input_key"):
        module(root, source_args={"input_key": "png"}).setup("fit")


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
            with pytest.warns(UserWarning, match=r"^1 unreadable images left out: .*dog/0.jpg: ZeroDivisionError: a"):
                assert labels(data, data.val_dataloader()) == [0, 0, 1, 2, 2]
        else:
            with pytest.raises(InputError, match=r"^unreadable image: .*dog/0.jpg: ZeroDivisionError: a strip; with"):
                labels(data, data.val_dataloader())


def test_a_split_without_readable_images(root):
    for path in (root / "val").rglob("*.jpg"):
        path.write_text("text")
    data = module(root, on_error="skip", batch_size=6)
    data.setup("fit")
    with pytest.raises(InputError, match=r"none of the 6 images can be read; the first: .*cat/0.jpg"):
        labels(data, data.val_dataloader())


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
    with pytest.raises(
        ValueError, match=r"needs a folder val, valid, validation, dev, test or testing beside .*; it holds away, t"
    ):
        module(root).setup("fit")


def test_two_folders_of_a_split(root):
    write_images(root / "validation" / "cat", 1)
    with pytest.raises(InputError, match=r"has both val and validation; one of them must go"):
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
    write_images(root / "train", 5)  # one more than a class has: they may be one
    told = r"train has images outside any class folder: 0.jpg \(5 such images, 12 in class folders\); each class needs"
    with pytest.raises(InputError, match=told):
        module(root).setup("fit")
    (root / "train" / "0.jpg").unlink()
    data = module(root)
    with pytest.warns(UserWarning, match=r"train: 4 files left out: 4 images outside any class \(1.jpg\)$"):
        data.setup("fit")
    assert (data.class_names, data.num_images) == (CLASSES, {"train": 12, "val": 6})


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
    with pytest.warns(UserWarning, match=r"unreadable images left out"):
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
