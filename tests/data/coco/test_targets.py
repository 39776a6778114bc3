"""What a batch of boxes and masks is, for training and validation."""

import pytest
import torch
from PIL import ExifTags, Image

from softmaxfree.errors import InputError
from tests.data.coco.small import SIZES, SQUARE, content, module, validate, write


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
    message = r"^\S*11.jpg is 40 x 60 \(width x height\), \S*json says 60 x 40 \(.*\); that is .* as stored, .*EXIF"
    with pytest.raises(InputError, match=message) as caught:
        validate(root, num_workers=workers)
    assert "\n" not in str(caught.value)


def test_the_size_of_inference(root):
    data = module(root)
    assert data.data_config["size"] == (80, 96)


def test_sizes_must_be_possible(root):
    with pytest.raises(ValueError, match=r"data.min_size needs sizes from 32 to data.max_size = 96"):
        module(root, min_size=[])
    for eval_size in (0, 31, 97):
        with pytest.raises(InputError, match=rf"data.min_size needs .*, got auto, and data.eval_size {eval_size}$"):
            module(root, min_size="auto", eval_size=eval_size)
    data = module(root, min_size="auto", eval_size=32)
    data.setup("fit")
    assert data.min_size == (32, 32, 32, 36, 40)
