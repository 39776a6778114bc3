"""Files of annotations and images that are wrong, broken or missing."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from softmaxfree.data import CocoDataModule
from softmaxfree.errors import InputError
from tests.data.coco.small import bad, content, module, validate, write

OTHERS = [
    (lambda d: d.pop("categories"), r"is not a COCO instances file: it has no list of categories"),
    (lambda d: d.update(annotations=None), r"it has no list of annotations"),
    (lambda d: d.update(images=[]), r"lists no images"),
    (lambda d: d.update(categories=[]), r"lists no categories"),
    (lambda d: d["images"].append(d["images"][0]), r"images\[0\] and \[3\] have the same id, 11"),
    *(
        (
            lambda d, name=name: d["images"].append({**d["images"][0], "id": 1, "file_name": name}),
            rf"images\[0\] and \[3\] have the same file_name, '{name}'",
        )
        for name in ("11.jpg", "./11.jpg", ".//11.jpg")
    ),
    (
        lambda d: d["categories"].extend({"id": i, "name": name} for i, name in ((4, "ant"), (5, "ant (id 4)"))),
        r"has the category ant 2 times; rename them",
    ),
    (lambda d: d["images"][1].update(height=None), r"images\[1\] has the height None; write a whole number of pixels"),
    (lambda d: d["images"][1].update(width=0), r"images\[1\] has the width 0"),
    (lambda d: d["images"][1].update(width="34"), r"images\[1\] has the width '34'"),
    (lambda d: d["images"][1].pop("file_name"), r"images\[1\] has no file_name"),
    (lambda d: d["images"][1].update(file_name=None), r"images\[1\] has the file_name None"),
    (lambda d: d["images"][1].update(id="7"), r"images\[1\] has the id '7'; write a whole number"),
    (lambda d: d["images"][1].update(file_name="../val2017/7.jpg"), r"'../val2017/7.jpg', which is outside the folder"),
    (lambda d: d["images"][1].update(file_name="/etc/7.jpg"), r"'/etc/7.jpg', which is absolute; write it relative"),
    (lambda d: d["images"].append("8.jpg"), r"images\[3\] is no object"),
    (lambda d: d["categories"][0].pop("name"), r"categories\[0\] has no name"),
    (lambda d: d["categories"][0].update(id=None), r"categories\[0\] has the id None"),
    (lambda d: d["categories"][0].update(id=3), r"categories\[0\] and \[1\] have the same id, 3"),
]


@pytest.mark.parametrize(("change", "message"), OTHERS)
def test_bad_images_and_categories(root, change, message):
    write(root, "val", bad(lambda d, a: change(d)))
    with pytest.raises(InputError, match=message) as caught:
        module(root, bad_annotations="drop").setup("validate")
    assert "instances_val2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_categories_are_numbered_as_the_weights_know_them(root):
    data = module(root)
    data.known_classes = ("zebra", "cow", "ant")
    data.setup("fit")
    assert data.class_names == ("zebra", "cow", "ant")
    assert data.class_counts == (1, 0, 1)
    assert data._sets["val"].dataset[0][1]["labels"].tolist() == [2, 0]


def test_categories_of_one_name(root):
    for split in ("train", "val"):
        write(root, split, bad(lambda d, a: d["categories"].append({"id": 7, "name": "ant "})))
    data = module(root)
    with pytest.warns(UserWarning, match=r"categories of the same name, .*: ant \(id 3\), ant \(id 7\)$"):
        data.setup("fit")
    assert data.class_names == ("ant (id 3)", "ant (id 7)", "zebra")
    assert data.class_counts == (1, 0, 1)


def test_splits_with_other_categories(root):
    write(root, "train", bad(lambda d, a: d["categories"][0].update(name="horse")))
    message = r"_train2017.json has other categories than .*_val2017.json: only in .*_train.*: horse; only in .*: zebra"
    with pytest.raises(InputError, match=message):
        module(root).setup("fit")
    write(root, "train", bad(lambda d, a: d["categories"].reverse()))  # the order in the file is none
    module(root).setup("fit")
    write(root, "train", bad(lambda d, a: [entry.update(id=93 - entry["id"]) for entry in d["categories"]]))
    message = r"other ids, so another order: 3 is zebra in .*_train2017.json, 3 is ant in .*_val2017.json; number them"
    with pytest.raises(InputError, match=message):
        module(root).setup("fit")


def test_a_file_of_another_kind(root):
    for section in ("", '{"images": '):
        (root / "annotations" / "instances_val2017.json").write_text(section + "[" * 100_000)
        with pytest.raises(InputError, match=r"instances_val2017.json is not a JSON file: .* nested too deep"):
            module(root).setup("validate")
    for text in ("[]", "3", '{"images": {}}'):
        (root / "annotations" / "instances_val2017.json").write_text(text)
        with pytest.raises(InputError, match=r"is not a COCO instances file: it has no list of images"):
            module(root).setup("validate")


def test_missing_files(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root: there is no folder .*nowhere"):
        module(tmp_path / "nowhere").setup("fit")
    (root / "val2017" / "7.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists 7.jpg, which is not in .*val2017 \(1 of 3 absent\)"):
        module(root).setup("validate")
    (root / "val2017").rename(root / "away")
    with pytest.raises(FileNotFoundError, match=r"no folder .*val2017"):
        module(root).setup("validate")
    (root / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(ValueError, match=r"instances_val2017.json is not a JSON file"):
        module(root).setup("validate")


def test_an_image_of_another_size_than_listed(root):
    Image.new("RGB", (37, 42)).save(root / "val2017" / "5.jpg")
    message = r"5.jpg is 37 x 42 \(width x height\), .*instances_val2017.json says 37 x 41 \(1 of 3 differ\)$"
    with pytest.raises(InputError, match=message):
        module(root).setup("validate")  # before a training begins


def test_a_file_without_masks(root):
    write(root, "val", bad(lambda d, a: [entry.pop("segmentation") for entry in d["annotations"]]))
    with pytest.raises(InputError, match=r"instances_val2017.json has no masks: none of its 3 annotations has a segm"):
        module(root).setup("validate")
    assert len(validate(root, with_masks=False)[0][0]) == 3


def test_images_that_are_too_small(root):
    Image.new("RGB", (3000, 12)).save(root / "val2017" / "7.jpg")
    data = content()
    data["images"][1].update(height=12, width=3000)
    write(root, "val", data)
    with pytest.warns(
        UserWarning,
        match=r"7.jpg is 12 high and 3000 wide, and 1 and 96 when resized; the networks need .*; data.min_s",
    ):
        images, _ = validate(root)[0]
    assert len(images) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named_and_counted(root, workers):
    (root / "val2017" / "7.jpg").write_text("not an image")
    with pytest.warns(UserWarning, match=r"^1 unreadable image left out: .*7.jpg cannot be read: it is no image"):
        batches = validate(root, batch_size=1, num_workers=workers)
    assert [len(images) for images, _ in batches] == [1, 0, 1]  # a batch of nothing but the broken image is empty
    with pytest.raises(ValueError, match=r"unreadable image: .*7.jpg .*--data.on_error skip"):
        validate(root, on_error="fail")


def test_a_training_batch_of_one_of_several_processes_needs_an_image(root):
    data = module(root)
    data.setup("fit")
    data.trainer = SimpleNamespace(training=True, world_size=2)
    with pytest.raises(ValueError, match=r"a batch has no image that can be read"):
        data.on_before_batch_transfer(([], []), 0)
    data.trainer.world_size = 1
    assert data.on_before_batch_transfer(([], []), 0) == ([], [])


def test_names_of_windows(root):
    data = content()
    for image in data["images"]:
        image["file_name"] = f"val2017\\{image['file_name']}"
    (root / "annotations" / "val.json").write_text(json.dumps(data))
    found = CocoDataModule(val_json=str(root / "annotations" / "val.json"), root=str(root), min_size=[64], max_size=96)
    found.setup("validate")
    assert [name for name, _ in found.split_rows] == []
    assert sorted(path.name for path in (root / "val2017").iterdir()) == ["11.jpg", "5.jpg", "7.jpg"]
    assert len(found._sets["val"]) == 3
    assert "1 region in val marked as crowds: no mistakes where they are found" in found.found
