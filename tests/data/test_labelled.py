"""Photographs of one's own: folders of classes and tables, split where they are not."""

import csv
import random
import shutil
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from softmaxfree.atomic import write_csv
from softmaxfree.data import ImageFolderDataModule, automatic, labelled
from softmaxfree.data.splits import draw_split, read_split
from softmaxfree.errors import InputError

rng = np.random.default_rng(0)


def write(path, mode="RGB", size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65536, size, np.uint16)).save(path)
    else:
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode).save(path)


def found(root=None, **arguments):
    automatic = {"img_size": "auto", "batch_size": "auto", "num_workers": "auto"}
    data = ImageFolderDataModule(root and str(root), **{**automatic, **arguments})
    data.setup("fit")
    return data


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten in many modes, below names that are not plain."""
    root = tmp_path / "my photos ü"
    for i, mode in enumerate(("RGB", "P", "L", "I;16", "RGBA", "LA", "1", "RGB", "L", "P")):
        write(root / "kind 10" / f"ä {i}.PNG", mode)
        write(root / "kind 2" / "inner" / f"{i}.png", mode)
    return root


def test_a_folder_of_classes_is_split(photos):
    data = found(photos)
    assert data.class_names == ("kind 2", "kind 10")
    assert (data.num_images, data.class_counts) == ({"train": 16, "val": 4}, (8, 8))
    assert data.found.endswith(
        ": 20 images of 2 classes (10 each: kind 2, kind 10); 16 to train, 4 to validate (20 % of all, drawn by class "
        "and seed 42)"
    )
    assert [data.decided[name][0] for name in ("img_size", "batch_size", "num_workers")] == [64, 8, 0]
    assert data.data_config["input_size"] == (3, 64, 64)
    assert Counter(split for _, split in data.split_rows) == {"train": 16, "val": 4}
    assert sum(len(images) for images, _ in data.val_dataloader()) == 4
    assert not any(data._sets["val"].marks)
    assert found(photos).split_rows == data.split_rows
    assert found(photos, seed=1).split_rows != data.split_rows
    data.setup("fit")  # again changes nothing
    assert len(data.split_rows) == 20


def test_a_split_is_read_again(photos, tmp_path):
    drawn = found(photos, seed=7)
    table = tmp_path / "split.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "split"), *drawn.split_rows])
    again = found(photos, split=str(table))
    for split in ("train", "val"):
        assert again._sets[split].dataset.listing.names == drawn._sets[split].dataset.listing.names
    write(photos / "kind 2" / "new.png")
    with pytest.raises(InputError, match=r"1 images of the data are not in it, such as kind 2/n"):
        found(photos, split=str(table))
    shutil.rmtree(photos / "kind 2" / "inner")
    with pytest.raises(InputError, match=r"such as kind 2/inner/0.png"):
        found(photos, split=str(table))


def test_how_much_is_held_out():
    classes = ["a"] * 100 + ["b"] * 3 + ["c"] + ["d"] * 2
    random.Random(0).shuffle(classes)
    drawn = draw_split([[name] for name in classes], 42)
    assert Counter(name for name, validates in zip(classes, drawn, strict=True) if validates) == {
        "a": 19,
        "b": 1,
        "d": 1,
    }


def test_many_classes_with_any_names_are_told_in_one_line(tmp_path):
    names = ("a\nb", "c\u2028", "d" * 50, "e", "f", "g", "h")
    for i, name in enumerate(names):
        for k in range(2 + i):
            write(tmp_path / name / f"{k}.png")
    data = found(tmp_path)
    assert data.class_names == names
    told = r"(a\nb 2, c\u2028 3, " + "d" * 37 + "... 4, e 5, f 6 and 2 more); "
    assert told in data.found


def test_too_many_images_to_compare_are_told(photos, monkeypatch):
    monkeypatch.setattr(labelled, "MOST_COMPARED", 19)
    assert found(photos).found.endswith("; not searched for equal files, as there are more than 19 images")


def test_hidden_classes_are_told(photos):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        write(photos / name / "0.png")
    with pytest.warns(UserWarning, match=r"2 files and folders left out: 2 hidden$"):
        assert found(photos).class_names == ("kind 2", "kind 10")


def test_a_class_with_one_image_is_trained_on(photos):
    write(photos / "rare" / "0.png")
    with pytest.warns(UserWarning, match=r"rare has one image, which is trained on: its score is not known"):
        data = found(photos)
    assert data.class_counts == (8, 8, 1)


def test_equal_files_on_both_sides_are_told(photos):
    for name in ("kind 2/inner", "kind 10"):
        for path in sorted((photos / name).glob("*.*")):
            shutil.copy(path, path.with_stem(f"copy of {path.stem}"))
    with pytest.warns(
        UserWarning, match=r"\d validation images are also trained on, .* is the same file as "
    ) as caught:
        data = found(photos)
    told = int(str(caught[0].message).split(": ")[1].split()[0])
    contents = {
        split: [(photos / f).read_bytes() for f, s in data.split_rows if s == split] for split in ("train", "val")
    }
    assert told == data.also_trained_on == sum(content in contents["train"] for content in contents["val"])
    assert data.remarks == [str(caught[0].message)]


def test_an_image_in_two_classes_is_told_on_whichever_side(photos):
    (first, *_), (second, *_) = (sorted((photos / name).glob("*.*")) for name in ("kind 2/inner", "kind 10"))
    copy = second.with_name(f"copy{first.suffix}")
    shutil.copy(first, copy)
    for seed in range(4):  # both to train, or one of them to validate
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = found(photos, seed=seed)
        (told,) = (str(w.message) for w in caught if "several classes" in str(w.message))
        assert told in data.remarks
        pair = {f"{copy} is the same file as {first}", f"{first} is the same file as {copy}"}
        assert told.removeprefix(f"{photos}: 1 image is in several classes, of which one at most is right: ") in pair


@pytest.mark.parametrize("names", ["train val", "Train VALIDATION", "training dev", "train valid", "TRAIN test"])
def test_names_of_splits(tmp_path, names):
    train, val = names.split()
    for i, name in enumerate(("1", "2", "10")):
        for split, count in ((train, 3), (val, 1)):
            for k in range(count):
                write(tmp_path / split / name / f"{i}{k}.png")
    assert found(tmp_path).class_names == ("1", "2", "10")
    shutil.rmtree(tmp_path / val / "2")
    with pytest.warns(UserWarning, match=r"2 has no images in the validation split: its score is not known"):
        data = found(tmp_path)
    assert [label for _, label in data._sets["val"]] == [0, 2]
    assert data.split_rows == []
    with pytest.raises(InputError, match=r"data.split: .* has a training and a validation split of its own"):
        found(tmp_path, split="split.csv")


def test_train_may_be_a_class_or_all_there_is(tmp_path):
    for name in ("bus", "train"):
        for i in range(3):
            write(tmp_path / "vehicles" / name / f"{i}.png")
    assert found(tmp_path / "vehicles").class_names == ("bus", "train")
    (tmp_path / "vehicles").rename(tmp_path / "train")
    data = found(tmp_path)
    assert data.class_names == ("bus", "train")
    assert data.split_rows[0][0] == "train/bus/0.png"
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "train", arcname=".")
    assert found(tmp_path / "all.tar").num_images == {"train": 4, "val": 2}


@pytest.mark.parametrize("around", [".", "train"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_picture_beside_the_classes_is_left_out(photos, tmp_path, around, packed):
    write(photos / "cover.jpg")
    root = tmp_path / "data"
    shutil.copytree(photos, root / around)
    if packed:
        with tarfile.open(tmp_path / "data.tar", "w") as tar:
            tar.add(root, arcname=".")
        root = tmp_path / "data.tar"
    with pytest.warns(UserWarning, match=r": 1 file left out: 1 image outside any class \(cover.jpg\)$") as caught:
        data = found(root)
    assert len(caught) == 1
    assert (data.class_names, data.num_images) == (("kind 2", "kind 10"), {"train": 16, "val": 4})
    assert {file.split("/")[-2] for file, _ in data.split_rows} == {"inner", "kind 10"}


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images in .*empty"):
        found(tmp_path / "empty")
    with pytest.raises(InputError, match=r"data.root is missing: a folder .* or data.train_csv"):
        found()
    for i in range(3):
        write(tmp_path / "outer" / "photos" / "cat" / f"{i}.png")
        write(tmp_path / "outer" / "photos" / "dog" / f"{i}.png")
    hint = (
        r"all images are of one class, photos; a classifier needs two; if its folders are the classes, .*outer/photos$"
    )
    with pytest.raises(InputError, match=hint):
        found(tmp_path / "outer")
    shutil.rmtree(tmp_path / "outer" / "photos" / "dog")
    with pytest.raises(InputError, match=r"all images are of one class, cat; a classifier needs two$"):
        found(tmp_path / "outer" / "photos")
    write(tmp_path / "single" / "a" / "0.png")
    write(tmp_path / "single" / "b" / "0.png")
    with pytest.raises(InputError, match=r"no class has two images, so none can be held out"):
        found(tmp_path / "single")


@pytest.fixture
def table(tmp_path):
    """Writes a table of ten images of two classes."""
    for i in range(10):
        write(tmp_path / "images" / f"a {i}.png")

    def make(head="image,label", row="images/a {0}.png,{1}", more="", encoding="utf-8", name="labels.csv"):
        lines = [row.format(i, "dog" if i % 2 else "cat", i) for i in range(10)]
        path = tmp_path / name
        path.write_bytes("\r\n".join([head, *lines, more]).encode(encoding))
        return str(path)

    return make


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("image,label", "images/a {0}.png,{1}"),
        ("Target;FileName", '{1};"images/a {0}.png"'),
        ("path\tclass", ".\\images\\a {0}.png\t {1}"),
        ("image|label", "images//a {0}.png|{1}"),
    ],
)
def test_tables(table, head, row):
    path = table(head, row, encoding="utf-8-sig")
    for arguments in ({"train_csv": path}, {"root": path}):
        data = found(**arguments)
        assert (data.class_names, data.class_counts) == (("cat", "dog"), (4, 4))
        assert len(data.split_rows) == 10


def test_a_table_with_splits_and_other_columns(table):
    path = table("image,label,split,who", 'images/a {0}.png,{1},{2},"x, y"')
    with pytest.raises(InputError, match=r"line 2: the split is '0'; allowed are train, training, val"):
        found(train_csv=path)
    splits = ["Train"] * 6 + ["valid"] * 3 + ["test"]
    rows = (f"images/a {i}.png,{'dog' if i % 2 else 'cat'},{split},me" for i, split in enumerate(splits))
    Path(path).write_text("\n".join(["image,label,split,who", *rows]), encoding="utf-8")
    data = found(train_csv=path)
    assert data.num_images == {"train": 6, "val": 3}
    assert data.found.endswith("; not used: column who, 1 row of the split test")


def test_one_image_in_many_spellings(table, tmp_path):
    spellings = ("images//a 0.png", "./images/../images/a 0.png", f"{tmp_path}/images/a 0.png", "images\\a 0.png")
    path = table(more="\r\n".join(f"{name},cat" for name in spellings))
    data = found(train_csv=path)
    assert data.num_images == {"train": 8, "val": 2}
    assert data.found.endswith("; not used: 4 repeated rows")
    assert sorted(file for file, _ in data.split_rows) == [f"images/a {i}.png" for i in range(10)]
    (tmp_path / "val.csv").write_text("image,label,split\n./images/a 1.png,cat,val\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"val_csv contradicts data.train_csv: .*a 1.png is 'cat', and 'dog' there"):
        found(train_csv=path, val_csv=str(tmp_path / "val.csv"))


def test_a_table_of_one_class_has_no_folders_to_go_into(table, tmp_path):
    with pytest.raises(InputError, match=r"all images are of one class, cat; a classifier needs two$"):
        found(train_csv=table(row="images/a {0}.png,cat"))


def test_two_tables(table, tmp_path):
    train = table(row="a {0}.png,{1}")
    (tmp_path / "val.csv").write_text("file,class\nmore/b.png,dog\n", encoding="utf-8")
    write(tmp_path / "images" / "more" / "b.png")
    with pytest.warns(UserWarning, match=r"cat has no images in the validation split"):
        data = found(tmp_path / "images", train_csv=train, val_csv=str(tmp_path / "val.csv"))
    assert data.num_images == {"train": 10, "val": 1}
    assert [label for _, label in data._sets["val"]] == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"more": "b.png,cat\r\nc.png,dog"}, r"s.csv names 12 images, of which 2 are not in .*: b.png, c.png; give"),
        ({"more": "images/a 0.png,"}, r"labels.csv has no label in line 12$"),
        ({"more": ",cat"}, r"labels.csv has no image in line 12$"),
        ({"more": "images/a 0.png,dog"}, r"rows that contradict each other: images/a 0.png is both 'cat' and 'dog'"),
        ({"more": "images/../images//a 0.png,dog"}, r"contradict each other: images/a 0.png is both 'cat' and 'dog'"),
        ({"more": "../\0.png,dog\r\nlink/../b.png,cat"}, r"s.csv names 12 images, of which 2 are not in "),
        ({"more": "link/a 0.png,dog"}, r"contradict each other: images/a 0.png is both 'cat' and 'dog'"),
        ({"head": "image:label", "row": "images/a {0}.png:{1}"}, r"has image:label; columns are parted by commas, s"),
        ({"head": "image,label,split", "row": "images/a {0}.png,{1},test"}, r"no row of the split train, only of t"),
        ({"head": "image,label,split", "row": "images/a {0}.png,{1},dev"}, r"no row of the split train, only of val$"),
        ({"head": "image,label,split", "row": "images/a {0}.png,{1},x"}, r"line 2: the split is 'x'; allowed are "),
        ({"more": "images/a 0.png,cat,x"}, r"has 2 columns, but not in line 12$"),
        ({"head": "name,kind"}, r"no column for the image: image, file, filename or path; it has name, kind"),
        ({"head": "image,file"}, r"has the columns image and file; only one may tell the image"),
        ({"more": "images/é.png,cat", "encoding": "latin-1"}, r"labels.csv is not in UTF-8"),
        ({"more": 'images/"a.png,"c'}, r"labels.csv is no CSV file"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(table, tmp_path, arguments, message):
    (tmp_path / "link").symlink_to(tmp_path / "images")
    with pytest.raises(InputError, match=message):
        found(train_csv=table(**arguments))


def test_what_is_auto():
    assert [automatic.batch_size(n) for n in (5, 40, 200, 400, 10**4)] == [5, 8, 16, 32, 64]
    gib = 2**30
    both = {"change_batch": True, "change_side": True}
    assert automatic.fitting(64, 224, 64 * gib, **both) == (64, 224)
    assert automatic.fitting(64, 224, 4 * gib, **both) == (8, 224)
    assert automatic.fitting(64, 224, gib // 2, **both) == (8, 96)
    assert automatic.fitting(64, 224, gib // 2, change_batch=True, change_side=False) == (1, 224)
    assert automatic.fitting(64, 224, gib // 2, change_batch=False, change_side=False) == (64, 224)
    assert automatic.num_workers(10**6) == 0
    assert automatic.num_workers(10**9) >= 1
    assert automatic.num_workers(10**9, processes=1000) == 1


def test_each_process_decides_from_the_same_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(automatic.psutil, "virtual_memory", lambda: SimpleNamespace(total=16, available=3, free=1))
    assert (automatic.total_memory(), automatic.total_memory(2)) == ((16, "memory"), (8, "memory"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 80))
    assert automatic.total_memory() == (80, "GPU memory")


def test_given_values_win_and_little_memory_is_told(photos, monkeypatch):
    assert found(photos, img_size=40, batch_size=3, num_workers=1).decided == {}
    monkeypatch.setattr(automatic, "total_memory", lambda processes: (40_000_000, "memory"))
    data = found(photos)
    assert data.batch_size == 1
    assert "GiB of memory" in data.decided["batch_size"][1]
    assert data.hparams["batch_size"] == 1


def test_images_without_an_up():
    """All eight ways in which a tile can lie are shown, and nothing else."""
    arguments = {"img_size": 8, "color_jitter": 0, "auto_augment": None, "re_prob": 0, "scale": (1, 1), "ratio": (1, 1)}
    tile = rng.integers(0, 256, (8, 8, 3), np.uint8)
    for orientation, ways in (("any", 8), ("upright", 2)):
        data = ImageFolderDataModule(
            "", orientation=orientation, mean=[0] * 3, std=[1] * 3, train_interpolation="bilinear", **arguments
        )
        transform = data._transform("train")
        seen = {(transform(Image.fromarray(tile)) * 255).round().byte().numpy().tobytes() for _ in range(200)}
        turned = torch.from_numpy(tile).permute(2, 0, 1)
        allowed = {
            way.contiguous().numpy().tobytes()
            for k in range(4)
            for way in (turned.rot90(k, (1, 2)), turned.flip(2).rot90(k, (1, 2)))
        }
        assert len(seen) == ways
        assert seen <= allowed
    with pytest.raises(InputError, match=r"data.orientation must be upright or any, got 'down'"):
        ImageFolderDataModule("", orientation="down")


def test_grey_photographs_stay_grey():
    data = ImageFolderDataModule("", img_size=16, color_jitter=[0.4, 0.4, 0.4, 0.1], auto_augment=None, re_prob=0)
    image = data._transform("train")(Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).convert("RGB"))
    pixels = (
        image * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    )
    assert (pixels.amax(0) - pixels.amin(0)).max() < 2 / 255
    for wrong in (-1, [0.1, 0.1], [0.1, 0.1, 0.1, 0.6]):
        with pytest.raises(InputError, match=r"data.color_jitter must be one number or \[brightness"):
            ImageFolderDataModule("", color_jitter=wrong)


def test_names_of_any_bytes_come_back_from_the_split(tmp_path):
    name = "photo\udce9.png"
    write_csv(tmp_path / "split.csv", [{"file": name, "split": "train"}, {"file": "b.png", "split": "val"}])
    assert read_split(tmp_path / "split.csv", [name, "b.png"]) == {name: "train", "b.png": "val"}
