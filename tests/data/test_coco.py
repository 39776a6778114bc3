import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from softmaxfree.data import CocoDataModule

SIZES = {11: (40, 60), 7: (50, 30), 5: (41, 37)}  # (height, width) by image id; in this order in the file
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
    assert empty["masks"].shape == (0, 50, 30)
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


def test_only_crowds_and_no_annotations(root):
    data = content()
    data["annotations"] = data["annotations"][2:]
    write(root, "train", data)
    images_only = module(root)
    images_only.setup("fit")
    _, targets = next(iter(images_only.train_dataloader()))
    assert all(target["boxes"].shape == (0, 4) and len(target["masks"]) == 0 for target in targets)
    write(root, "val", {**data, "annotations": []})
    assert sum(len(target["boxes"]) for target in validate(root)[0][1]) == 0


def bad(change):
    """A file of annotations after `change(file's content, its first annotation)`."""
    data = content()
    change(data, data["annotations"][0])
    return data


BAD = {
    r"the box \[5, 3, 0, 6\] of annotation 1 \(image 5\) has no width": lambda d, a: a.update(bbox=[5, 3, 0, 6]),
    r"annotation 1 \(image 5\) has no width or no height": lambda d, a: a.update(bbox=[5, 3, float("nan"), 6]),
    r"annotation 1 \(image 5\) lies outside its image": lambda d, a: a.update(bbox=[37, 3, 4, 6]),
    r"annotation 1 is of image 99, which": lambda d, a: a.update(image_id=99),
    r"annotation 1 is of category 4, which": lambda d, a: a.update(category_id=4),
    r"mask of annotation 1 .* has the size \[37, 41\], its image \[41, 37\]": (
        lambda d, a: a["segmentation"].update(size=[37, 41])
    ),
    r"mask of annotation 1 .* reaches to \(30, 28\), its image is 20 wide": (
        lambda d, a: (a.update(segmentation=SQUARE), d["images"][2].update(width=20))
    ),
    r"mask of annotation 1 .* is neither": lambda d, a: a.update(segmentation=[[1, 2, 3, 4]]),
    r"mask of annotation 1 \(image 5\) is neither": lambda d, a: a.pop("segmentation"),
    r"lacks an entry of the COCO format: KeyError\('bbox'\)": lambda d, a: a.pop("bbox"),
    r"has no categories": lambda d, a: d.pop("categories"),
    r"two image entries have the same id": lambda d, a: d["images"].append(d["images"][0]),
    r"lists no images": lambda d, a: d.update(images=[], annotations=[]),
}


@pytest.mark.parametrize("message", BAD)
def test_contradictory_annotations(root, message):
    write(root, "val", bad(BAD[message]))
    with pytest.raises(ValueError, match=message):
        module(root).setup("validate")


def test_boxes_of_zero_size_can_be_dropped(root):
    write(root, "val", bad(lambda d, a: a.update(bbox=[5, 3, 15, 0])))
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
    with pytest.raises(ValueError, match=r"other categories than the validation file: \['horse', 'zebra'\]"):
        module(root).setup("fit")


def test_an_image_of_another_size_than_listed(root):
    Image.new("RGB", (37, 42)).save(root / "val2017" / "5.jpg")
    with pytest.raises(ValueError, match=r"5.jpg is 42 high and 37 wide, .*instances_val2017.json says \(41, 37\)"):
        validate(root)


def test_sizes_must_be_possible(root):
    with pytest.raises(ValueError, match=r"data.min_size needs sizes from 1 to data.max_size = 96"):
        module(root, min_size=[])


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named_and_counted(root, workers):
    (root / "val2017" / "7.jpg").write_text("not an image")
    with pytest.warns(UserWarning, match=r"^1 unreadable images left out: .*7.jpg \(cannot identify image file"):
        batches = validate(root, batch_size=1, num_workers=workers)
    assert [len(images) for images, _ in batches] == [1, 0, 1]  # a batch of nothing but the broken image is empty
    with pytest.raises(ValueError, match=r"unreadable image .*7.jpg .*--data.on_error skip"):
        validate(root, on_error="fail")


def test_a_training_batch_needs_an_image(root):
    data = module(root)
    data.setup("fit")
    data.trainer = SimpleNamespace(training=True)
    with pytest.raises(ValueError, match=r"a batch has no image that can be read"):
        data.on_before_batch_transfer(([], []), 0)
