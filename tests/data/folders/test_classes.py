"""Folders of classes and splits: what is an image of which class."""

import pytest

from softmaxfree.errors import InputError
from tests.data.folders.small import CLASSES, into_tars, labels, module, write_images


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


def test_a_source_of_timm(root):
    data = module(root, source="torch/image_folder")
    data.setup("fit")
    assert data.class_names == CLASSES
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


def test_a_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root: there is no folder .*nowhere"):
        module(tmp_path / "nowhere").setup("fit")
    (tmp_path / "cat.jpg").touch()
    with pytest.raises(InputError, match=r"data.root: .*cat.jpg is a file; it must be a folder of images"):
        module(tmp_path / "cat.jpg").setup("fit")


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
