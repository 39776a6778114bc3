import json
import re
import shutil

import pytest
import torch
from PIL import Image

from softmaxfree.data import CocoDataModule
from softmaxfree.errors import InputError

COUNT = 10


def content(names, categories=("cells", "red", "blue")):
    """A box of `red` in each image; of `blue` in two of them; of `cells` nowhere, as Roboflow's first category."""
    boxes = [(i, 1, [4, 6, 20, 10]) for i in range(len(names))] + [(i, 2, [30, 8, 12, 24]) for i in (1, 4)]
    return {
        "images": [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(names)],
        "categories": [{"id": i, "name": name, "supercategory": "none"} for i, name in enumerate(categories)],
        "annotations": [
            {"id": k, "image_id": i, "category_id": category, "bbox": box, "iscrowd": 0}
            for k, (i, category, box) in enumerate(boxes)
            if i < len(names)
        ],
    }


def write(file, folder, count=COUNT, prefix="", **arguments):
    names = [f"{prefix}bild ä{i}.jpg" for i in range(count)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (80, 60))
        image.paste("red", (4, 6, 24, 16))
        image.save(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content(names, **arguments)))
    return file


def setup(stage="fit", **arguments):
    auto = dict.fromkeys(("min_size", "max_size", "batch_size", "num_workers"), "auto")
    data = CocoDataModule(**{key: str(value) for key, value in arguments.items()}, **auto)
    data.setup(stage)
    return data


def test_one_file_is_split_and_sized(tmp_path):
    file = write(tmp_path / "my boxes.json", tmp_path / "images")
    data = setup(train_json=file)
    assert data.class_names == ("cells", "red", "blue")
    assert data.num_images == {"val": 2, "train": 8}
    assert data.class_counts == (0, 8, 1)  # of blue one image on each side
    assert "10 images of" in data.found
    assert "8 train, 2 val (drawn by seed 42); 12 boxes of 3 classes: cells 0, red 10, blue 2" in data.found
    assert "no box in train of cells" in data.found
    assert {name: value for name, (value, _) in data.decided.items()} == {
        "batch_size": 2, "eval_size": 64, "max_size": 107, "num_workers": 0, "min_size": (48, 56, 64, 72, 80)
    }  # fmt: skip
    assert data.data_config["size"] == (64, 107)
    images, targets = next(iter(data.train_dataloader()))
    for image, target in zip(images, targets, strict=True):
        assert min(image.shape[1:]) in (48, 56, 64, 72, 80)
        box = target["boxes"][target["labels"] == 1][0].round().int().tolist()
        assert image[0, box[1] + 2 : box[3] - 2, box[0] + 2 : box[2] - 2].min() > 0.6  # red, but for JPEG
    given = CocoDataModule(train_json=str(file), min_size=128, max_size="auto", batch_size="auto", num_workers=0)
    given.setup("fit")
    assert (given.min_size, given.data_config["size"], given.batch_size) == ((128,), (128, 171), 2)
    rows = data.split_rows
    assert setup("validate", train_json=file).split_rows == rows
    turned = [(name, "val" if split == "train" else "train") for name, split in rows]
    (tmp_path / "split.csv").write_text("file,split\n" + "\n".join(map(",".join, turned)))
    again = setup(train_json=file, split=tmp_path / "split.csv")
    assert again.split_rows == turned
    assert again.num_images == {"val": 8, "train": 2}


LAYOUTS = [  # (JSON, folder of its images, before each name), arguments, images to train on and to validate with
    ([("d/annotations/x.json", "d", "")], {"root": "d"}, (8, 2)),
    ([("d/x.json", "d/images", "")], {"root": "d"}, (8, 2)),
    ([("d/x.json", "d", "some/folder/")], {"root": "d"}, (8, 2)),
    ([("d/annotations/train.json", "d/train", ""), ("d/annotations/valid.json", "d/valid", "")],
     {"root": "d"}, (10, 10)),
    ([("d/Train/_annotations.coco.json", "d/Train", ""), ("d/valid/_annotations.coco.json", "d/valid", "")],
     {"root": "d"}, (10, 10)),
    ([("d/train/_annotations.coco.json", "d/train", "")], {"root": "d"}, (8, 2)),
    ([("j/a.json", "x", ""), ("j/b.json", "y", "")],
     {"train_json": "j/a.json", "val_json": "j/b.json", "train_images": "x", "val_images": "y"}, (10, 10)),
    ([("j/a.json", "x", "")], {"train_json": "j/a.json", "root": "x"}, (8, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("files", "arguments", "counts"), LAYOUTS)
def test_layouts(tmp_path, files, arguments, counts):
    for file, folder, prefix in files:
        write(tmp_path / file, tmp_path / folder, prefix=prefix)
    data = setup(**{key: tmp_path / value for key, value in arguments.items()})
    assert (data.num_images["train"], data.num_images["val"]) == counts
    assert data._sets["val"][0][1]["boxes"][0].tolist() == [4, 6, 24, 16]


def test_what_cannot_be_found(tmp_path):
    a = write(tmp_path / "a.json", tmp_path / "images")
    b = write(tmp_path / "b.json", tmp_path / "images")
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(InputError, match=r"has 2 COCO JSON files: .*a.json, .*b.json; say which with data.train_json"):
        setup(root=tmp_path)
    with pytest.raises(InputError, match=r"data.root or data.train_json is needed"):
        setup()
    with pytest.raises(InputError, match=r"data.train_json is missing: there is only .*b.json"):
        setup(val_json=b)
    assert setup("validate", val_json=b).num_images == {"val": 10}
    with pytest.raises(FileNotFoundError, match=r"data.val_json: there is no file .*nowhere.json"):
        setup(train_json=a, val_json=tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match=r"data.train_images: there is no folder .*nowhere"):
        setup(train_json=a, train_images=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data.val_images is the folder of data.val_json, which is missing"):
        setup(train_json=a, val_images=tmp_path)
    with pytest.raises(InputError, match=r"data.split says which images of one file validate"):
        setup(train_json=a, val_json=b, split=a)
    (tmp_path / "images" / "bild ä3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"bild ä3.jpg, which is not in .*images \(1 of 10 absent\); looked"):
        setup(train_json=a)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no COCO JSON file.*data.train_json names one"):
        setup(root=tmp_path / "empty")
    write(tmp_path / "one.json", tmp_path / "one", 1)
    with pytest.raises(InputError, match=r"one.json has a single image"):
        setup(train_json=tmp_path / "one.json")


def test_any_orientation_turns_boxes_too(tmp_path):
    data = setup(train_json=write(tmp_path / "x.json", tmp_path), orientation="any")
    seen = set()
    for _ in range(8):
        for image, target in zip(*next(iter(data.train_dataloader())), strict=True):
            x1, y1, x2, y2 = target["boxes"][target["labels"] == 1][0].round().int().tolist()
            assert image[0, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min() > 0.6
            assert (image[0] > 0.8).sum() <= (x2 - x1 + 1) * (y2 - y1 + 1)
            seen.add((x1 < image.shape[2] / 3, y1 < image.shape[1] / 3, image.shape[1] < image.shape[2]))
    assert len(seen) > 4
    assert torch.is_tensor(image)


def test_narrow_images_survive_the_sizes_that_follow_from_them(tmp_path):
    file = write(tmp_path / "x.json", tmp_path)
    data = json.loads(file.read_text())
    for entry in data["images"]:
        entry.update(height=48, width=1152)
        Image.new("RGB", (1152, 48)).save(tmp_path / entry["file_name"])
    file.write_text(json.dumps(data))
    data = setup(train_json=file)
    assert (data.eval_size, data.max_size) == (64, 769)
    for images, targets in (*data.train_dataloader(), *data.val_dataloader()):
        data.on_before_batch_transfer((images, targets), 0)
        assert len(images) > 0
        assert all(min(image.shape[1:]) >= 32 for image in images)


def test_images_on_both_sides_are_told(tmp_path):
    a = write(tmp_path / "a.json", tmp_path / "images")
    text = rf"; 10 validation images are also trained on, .*: {tmp_path}/images/bild ä0.jpg is (on both|the same file)"
    for b in (a, write(tmp_path / "b.json", tmp_path / "images")):
        assert re.search(text, setup(train_json=a, val_json=b).found)
    for i in range(COUNT):
        Image.effect_noise((80, 60), 50 + i).convert("RGB").save(tmp_path / "images" / f"bild ä{i}.jpg")
    assert "also trained on" not in setup(train_json=a).found
    shutil.copy(tmp_path / "images" / "bild ä0.jpg", tmp_path / "images" / "bild ä1.jpg")
    rows = [(f"bild ä{i}.jpg", "val" if i == 1 else "train") for i in range(COUNT)]
    (tmp_path / "split.csv").write_text("file,split\n" + "\n".join(map(",".join, rows)))
    found = setup(train_json=a, split=tmp_path / "split.csv").found
    assert f"1 validation image is also trained on, which makes the score too good: {tmp_path}/images/bild ä1" in found


def test_unused_images_are_told(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / split / "_annotations.coco.json", tmp_path / split)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "new.png")
    assert "; images left out: 10 in test, 1 in train" in setup(root=tmp_path).found
    assert (
        f"; images left out: 1 in {tmp_path}/train" in setup(train_json=tmp_path / "train/_annotations.coco.json").found
    )
    (tmp_path / "test").rename(tmp_path.parent / f"{tmp_path.name} test")
    (tmp_path / "train" / "new.png").unlink()
    (tmp_path / "train").rename(tmp_path / "z")
    (tmp_path / "train").symlink_to(tmp_path / "z")  # what a link shows is used
    assert "left out" not in setup(root=tmp_path).found
    swapped = write(tmp_path / "swapped.json", tmp_path / "z", categories=("cells", "blue", "red"))
    message = r"^data.train_json and data.val_json: the categories have other ids, .*: 1 is blue in .*, 1 is red in"
    with pytest.raises(InputError, match=message):
        setup(train_json=swapped, val_json=tmp_path / "valid" / "_annotations.coco.json")
    swapped.unlink()
    (tmp_path / "train").unlink()
    with pytest.raises(
        InputError, match=r"data.root: \S* has no JSON file for train: there is only .*valid/_annotations"
    ):
        setup(root=tmp_path)


def test_images_in_two_folders(tmp_path):
    """Of two unknown names none is better; a known one is, and the other is told."""
    file = write(tmp_path / "x.json", tmp_path / "photos")
    assert "also in" not in setup(train_json=file).found
    shutil.copytree(tmp_path / "photos", tmp_path / "small")
    (tmp_path / "link").symlink_to(tmp_path / "small")
    with pytest.raises(InputError, match=r"x.json: its images are in \S*/link and in \S*/photos; data.train_images"):
        setup(train_json=file)
    assert "/small" in setup(train_json=file, train_images=tmp_path / "small").found
    shutil.copytree(tmp_path / "photos", tmp_path / "images")
    found = setup(train_json=file).found
    assert f"(images in {tmp_path}/images)" in found
    assert f"images of the same names also in {tmp_path}/link, {tmp_path}/photos" in found


def test_many_classes_are_told_in_one_line(tmp_path):
    names = ("cells", "red\nlight", *map(str, range(200)))
    found = setup(train_json=write(tmp_path / "x.json", tmp_path, categories=names)).found
    assert "cells 0, red light 10, 0 2, 1 0" in found
    assert "9 0 and 190 more; no box in train of cells, 1, 2" in found
    assert "11 and 188 more" in found
    assert "\n" not in found
