import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from softmaxfree.data import CocoDataModule
from softmaxfree.data.coco_checks import _run_lengths
from softmaxfree.errors import InputError

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


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        for i, (height, width) in SIZES.items():
            shape = (height, width) if i == 5 else (height, width, 3)
            pixels = rng.integers(0, 255, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{split}2017" / f"{i}.jpg")
        write(tmp_path, split, content())
    return tmp_path


def module(root, **arguments):
    defaults = {"batch_size": 3, "num_workers": 0, "with_masks": True, "min_size": [64, 80], "max_size": 96}
    return CocoDataModule(str(root), **{**defaults, **arguments})


def validate(root, **arguments):
    data = module(root, **arguments)
    data.setup("validate")
    return [data.on_before_batch_transfer(batch, 0) for batch in data.val_dataloader()]


def test_validation_targets(root):
    data = module(root)
    data.setup("fit")
    assert data.class_names == ("ant", "zebra")
    assert data.num_classes == 2
    images, targets = next(iter(data.val_dataloader()))
    assert [tuple(image.shape) for image in images] == [(3, *size) for size in SIZES.values()]
    assert all(image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1 for image in images)
    assert [target["image_id"] for target in targets] == [11, 7, 5]
    first, empty, last = targets
    assert first["boxes"].tolist() == [[10, 8, 30, 28], [0, 0, 10, 40]]
    assert first["labels"].tolist() == [0, 1]
    assert first["iscrowd"].tolist() == [False, True]
    assert first["area"].tolist() == [400, 400]
    assert first["masks"].sum((1, 2)).tolist() == [400, 400]
    assert first["masks"][1, :, :10].all()
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 50, 34)
    assert last["masks"][0, 3:9, 5:20].all()
    assert last["masks"].sum() == 90
    assert type(last["boxes"]) is type(last["masks"]) is type(images[0]) is torch.Tensor


def test_training_targets_follow_their_images(root):
    """The coded mask fills its box, and still does after each mirroring and resizing."""
    data = module(root, batch_size=3)
    data.setup("fit")
    sizes, mirrored = set(), set()
    for _ in range(8):
        images, targets = next(iter(data.train_dataloader()))
        for image, target in zip(images, targets, strict=True):
            height, width = image.shape[1:]
            assert min(height, width) in (64, 80) or max(height, width) == 96
            assert not target["iscrowd"].any()
            assert target["masks"].shape == (len(target["boxes"]), height, width)
            assert len(target["labels"]) == len(target["boxes"]) == len(target["area"])
            if target["image_id"] == 5:
                x1, _, x2, _ = box = target["boxes"][0]
                rows, columns = target["masks"][0].nonzero().T
                around = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (around - box).abs().max() <= 1
                assert target["masks"].sum() == (around[2] - around[0]) * (around[3] - around[1])
                sizes.add(min(height, width))
                mirrored.add(bool(x1 > width - x2))
    assert sizes == {64, 80}
    assert mirrored == {True, False}


def test_nothing_is_mirrored_or_resized_unless_wanted(root):
    plain = module(root, augment=False)
    plain.setup("fit")
    images, _ = next(iter(plain.train_dataloader()))
    assert {tuple(image.shape[1:]) for image in images} == set(SIZES.values())
    still = module(root, hflip=0, min_size=[37], max_size=96)
    still.setup("fit")
    for _ in range(4):
        for target in next(iter(still.train_dataloader()))[1]:
            if target["image_id"] == 5:
                assert target["boxes"].tolist() == [[5, 3, 20, 9]]


def test_validation_needs_no_training_files(root):
    (root / "annotations" / "instances_train2017.json").unlink()
    assert len(validate(root)[0][0]) == 3
    with pytest.raises(FileNotFoundError, match=r"there is no file .*instances_train2017.json"):
        module(root).setup("fit")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("kept", "message"), [(slice(2, 3), "no annotations but 1 crowds"), (slice(0), "no annotations:")]
)
def test_nothing_to_train_on(root, split, kept, message):
    data = content()
    data["annotations"] = data["annotations"][kept]
    write(root, split, data)
    with pytest.raises(InputError, match=rf"instances_{split}2017.json has {message}"):
        module(root).setup("fit")


def bad(change):
    """A file of annotations after `change(file's content, its first annotation)`."""
    data = content()
    change(data, data["annotations"][0])
    return data


NAN, INF = float("nan"), float("inf")
RLE = {"size": [41, 37], "counts": [0, 41 * 37]}
BAD = [  # changes to the first annotation, and what is said of it
    ({"bbox": [5, 3, 0, 6]}, r"has the box \[5, 3, 0, 6\], which has no width or no height; --data.zero_boxes drop"),
    ({"bbox": [5, 3, -2, 6]}, r"has the box \[5, 3, -2, 6\], which has no width"),
    ({"bbox": [5, 3, NAN, 6]}, r"has the bbox \[5, 3, nan, 6\]; write four numbers"),
    ({"bbox": [5, 3, INF, 6]}, r"has the bbox .*; write four numbers"),
    ({"bbox": [5, 3, 10**400, 6]}, r"has the bbox .*; write four numbers"),
    ({"bbox": [5, 3, None, 6]}, r"has the bbox \[5, 3, None, 6\]; write four numbers"),
    ({"bbox": [5, 3, "2", 6]}, r"has the bbox .*; write four numbers"),
    ({"bbox": [5, 3, 2]}, r"has the bbox .*; write four numbers"),
    ({"bbox": [5, 3, 2, 2, 2]}, r"has the bbox .*; write four numbers"),
    ({"bbox": "5 3 2 2"}, r"has the bbox '5 3 2 2'; write four numbers"),
    ({"bbox": None}, r"has the bbox None; write four numbers"),
    ({"bbox": ...}, r"has no bbox; write four numbers"),
    ({"bbox": [37, 3, 4, 6]}, r"has the box .*, which lies outside its image, 37 wide and 41 high"),
    ({"bbox": [-9, 3, 4, 6]}, r"has the box .*, which lies outside its image"),
    ({"id": ...}, r"annotations\[0\] has no id; write a whole number"),
    ({"id": "one"}, r"annotation one .* has the id 'one'; write a whole number"),
    ({"id": None}, r"has the id None"),
    ({"image_id": "5"}, r"has the image_id '5'; write a whole number"),
    ({"image_id": None}, r"has the image_id None"),
    ({"image_id": 99}, r"annotation 1 \(image 99\) is of image 99, which the file does not list"),
    ({"category_id": 4}, r"is of category 4, which the file does not list"),
    ({"category_id": [3]}, r"has the category_id \[3\]"),
    ({"iscrowd": None}, r"has the iscrowd None; write 0 or 1"),
    ({"iscrowd": "0"}, r"has the iscrowd '0'; write 0 or 1"),
    ({"iscrowd": 2}, r"has the iscrowd 2; write 0 or 1"),
    ({"area": None}, r"has the area None; write a number of pixels, or leave it out"),
    ({"area": NAN}, r"has the area nan"),
    ({"area": -3}, r"has the area -3"),
    ({"segmentation": {**RLE, "size": [37, 41]}}, r"has a mask of the size \[37, 41\], its image has \[41, 37\]"),
    ({"segmentation": {"counts": [1517]}}, r"has a mask of the size None"),
    ({"segmentation": {"size": [41, 37]}}, r"has a mask whose counts are no run lengths"),
    ({"segmentation": {**RLE, "counts": [0, 100]}}, r"run lengths sum up to 100, not to 41 x 37 = 1517"),
    ({"segmentation": {**RLE, "counts": [0, 1518]}}, r"run lengths sum up to 1518"),
    ({"segmentation": {**RLE, "counts": [-1, 1518]}}, r"has a mask whose counts are no run lengths"),
    ({"segmentation": {**RLE, "counts": [0, "1517"]}}, r"has a mask whose counts are no run lengths"),
    ({"segmentation": {**RLE, "counts": [1517]}}, r"has a mask that covers no pixel"),
    ({"segmentation": {**RLE, "counts": "no run lengths"}}, r"has a mask whose counts are no run lengths"),
    ({"segmentation": {**RLE, "counts": "0PPP"}}, r"has a mask whose counts are no run lengths"),
    ({"segmentation": {**RLE, "counts": "05"}}, r"has a mask whose run lengths sum up to 5"),
    (
        {"segmentation": [10, 8, 30, 8, 30, 28]},
        r"has a mask that is one flat list of numbers; write a list of polygons",
    ),
    (
        {"segmentation": [[1, 2, 3, 4]]},
        r"has a mask that is neither a run-length code nor polygons of at least 3 points",
    ),
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, r"polygons of at least 3 points"),
    ({"segmentation": [[1, 2, 3, 4, 5, NAN]]}, r"polygons of at least 3 points"),
    ({"segmentation": [[1, 2, 3, 4, 5, None]]}, r"polygons of at least 3 points"),
    ({"segmentation": [[[1, 2], [3, 4], [5, 6]]]}, r"polygons of at least 3 points"),
    ({"segmentation": []}, r"polygons of at least 3 points"),
    ({"segmentation": None}, r"polygons of at least 3 points"),
    ({"segmentation": ...}, r"polygons of at least 3 points"),
    ({"segmentation": [[50, 8, 60, 8, 60, 28]]}, r"has a polygon outside its image, 37 wide and 41 high"),
    ({"segmentation": [[5, -8, 9, -8, 9, -2]]}, r"has a polygon outside its image"),
    ({"segmentation": [[5, 8, 60, 8, 60, 28]]}, r"reaches from \(5, 8\) to \(60, 28\), its image is 37 wide"),
    ({"segmentation": [[-5, 8, 20, 8, 20, 28]]}, r"reaches from \(-5, 8\) to"),
]


def changed(entry, changes):
    entry.update(changes)
    for key in [key for key, value in changes.items() if value is ...]:
        del entry[key]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_annotations(root, changes, message):
    """Each is told in one line, or left out and counted; its image stays."""
    write(root, "val", bad(lambda d, a: changed(a, changes)))
    with pytest.raises(InputError, match=message) as caught:
        module(root).setup("validate")
    text = str(caught.value)
    assert "instances_val2017.json: annotation" in text
    assert text.endswith(" drop leaves such out")
    assert "\n" not in text
    with pytest.warns(UserWarning, match=r"instances_val2017.json: 1 of 3 annotations left out; the first: annotation"):
        images, targets = validate(root, bad_annotations="drop")[0]
    assert len(images) == 3
    assert [len(target["boxes"]) for target in targets] == [2, 0, 0]
    if "segmentation" in changes:  # which nobody needs without masks
        _, targets = validate(root, with_masks=False)[0]
        assert [len(target["boxes"]) for target in targets] == [2, 0, 1]


def test_nothing_is_left(root):
    data = content()
    for entry in data["annotations"]:
        entry["iscrowd"] = None
    write(root, "val", data)
    with (
        pytest.warns(UserWarning, match=r"3 of 3 annotations left out"),
        pytest.raises(InputError, match=r"has no annotations: there is nothing to train on"),
    ):
        module(root, bad_annotations="drop").setup("validate")


def test_what_is_unusual_and_right(root):
    """No area and no iscrowd, ids as 5.0, true as iscrowd, a box that reaches over the edge."""
    data = content()
    changed(data["annotations"][0], {"area": ..., "iscrowd": ..., "image_id": 5.0, "bbox": [-2, 3, 15.5, 6]})
    changed(data["annotations"][2], {"iscrowd": True})
    write(root, "val", data)
    _, targets = validate(root)[0]
    assert targets[2]["area"].tolist() == [93]
    assert targets[2]["boxes"].tolist() == [[-2, 3, 13.5, 9]]
    assert targets[0]["iscrowd"].tolist() == [False, True]


def test_categories_of_one_name(root):
    for split in ("train", "val"):
        write(root, split, bad(lambda d, a: d["categories"].append({"id": 7, "name": "ant "})))
    data = module(root)
    with pytest.warns(UserWarning, match=r"categories of the same name, .*: ant \(id 3\), ant \(id 7\)$"):
        data.setup("fit")
    assert data.class_names == ("ant (id 3)", "ant (id 7)", "zebra")
    assert data.class_counts == (1, 0, 1)


def test_annotations_that_repeat_others_are_told(root):
    write(root, "val", bad(lambda d, a: d["annotations"].extend([{**a, "id": 9}, {**a, "bbox": [5, 3, 4, 4]}])))
    message = (
        r"_val2017.json: 1 of 5 annotations have image, category and box of another, such as annotation 9 \(image 5\); "
        r"1 of 5 annotations have the id of another, such as annotation 1 \(image 5\); they are kept"
    )
    with pytest.warns(UserWarning, match=message):
        _, targets = validate(root)[0]
    assert [len(target["boxes"]) for target in targets] == [2, 0, 3]


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_as_pycocotools_writes_them(seed):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(rng.random((57, 43)) < rng.random() ** 4, np.uint8)
    changes = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=2))
    wanted = np.diff(np.concatenate([[0], changes])).tolist()
    assert _run_lengths(coco_mask.encode(mask)["counts"].decode()) == wanted


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
    (lambda d: d["images"][1].update(file_name="/etc/7.jpg"), r"'/etc/7.jpg', which is outside the folder"),
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


def test_a_file_of_another_kind(root):
    for section in ("", '{"images": '):
        (root / "annotations" / "instances_val2017.json").write_text(section + "[" * 100_000)
        with pytest.raises(InputError, match=r"instances_val2017.json is not a JSON file: .* nested too deep"):
            module(root).setup("validate")
    for text in ("[]", "3", '{"images": {}}'):
        (root / "annotations" / "instances_val2017.json").write_text(text)
        with pytest.raises(InputError, match=r"is not a COCO instances file: it has no list of images"):
            module(root).setup("validate")


def turn(root, orientation):
    """Image 11, stored 40 high and 60 wide."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(root / "val2017" / "11.jpg") as image:
        image.load()
    image.save(root / "val2017" / "11.jpg", exif=exif)


def test_boxes_of_the_image_as_it_is_shown(root):
    turn(root, 6)
    data = content()
    data["images"][0].update(height=60, width=40)
    data["annotations"][1]["segmentation"] = SQUARE
    data["annotations"].pop()
    write(root, "val", data)
    images, targets = validate(root)[0]
    assert tuple(images[0].shape) == (3, 60, 40)
    assert targets[0]["masks"].shape == (1, 60, 40)


@pytest.mark.parametrize("workers", [0, 1])
def test_boxes_of_the_image_as_it_is_stored(root, workers):
    turn(root, 6)
    message = r"^\S*11.jpg is 60 high and 40 wide, \S*json says \(40, 60\); that is the image as stored, which .*EXIF"
    with pytest.raises(InputError, match=message) as caught:
        validate(root, num_workers=workers)
    assert "\n" not in str(caught.value)


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


def test_the_size_of_inference(root):
    data = module(root)
    assert data.data_config["size"] == (80, 96)


def test_boxes_of_zero_size_can_be_dropped(root):
    write(root, "val", bad(lambda d, a: a.update(bbox=[5, 3, 15, 0])))
    with pytest.warns(UserWarning, match=r"1 of 3 annotations left out"):
        _, targets = validate(root, zero_boxes="drop")[0]
    assert [len(target["boxes"]) for target in targets] == [2, 0, 0]


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


def test_an_image_of_another_size_than_listed(root):
    Image.new("RGB", (37, 42)).save(root / "val2017" / "5.jpg")
    with pytest.raises(ValueError, match=r"5.jpg is 42 high and 37 wide, .*instances_val2017.json says \(41, 37\)"):
        validate(root)


def test_sizes_must_be_possible(root):
    with pytest.raises(ValueError, match=r"data.min_size needs sizes from 32 to data.max_size = 96"):
        module(root, min_size=[])
    for eval_size in (0, 31, 97):
        with pytest.raises(InputError, match=rf"data.min_size needs .*, got auto, and data.eval_size {eval_size}$"):
            module(root, min_size="auto", eval_size=eval_size)
    data = module(root, min_size="auto", eval_size=32)
    data.setup("fit")
    assert data.min_size == (32, 32, 32, 36, 40)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named_and_counted(root, workers):
    (root / "val2017" / "7.jpg").write_text("not an image")
    with pytest.warns(UserWarning, match=r"^1 unreadable images left out: .*7.jpg cannot be read: it is no image"):
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
