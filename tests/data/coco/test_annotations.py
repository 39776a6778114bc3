"""Annotations that break the rules of COCO, or are unusual and right."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from softmaxfree.data.coco_checks import _run_lengths
from softmaxfree.errors import InputError
from tests.data.coco.small import bad, changed, content, module, validate, write

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
        {"segmentation": [[20, 20, 30, 20, 30, 35]], "bbox": [1, 2, 10, 10]},
        r"has the box \[1, 2, 10, 10\], but a mask from \(20, 20\) to \(30, 35\), which has nothing in common",
    ),
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
    if "bbox" in changes:
        with pytest.raises(InputError, match=message):
            module(root, with_masks=False).setup("validate")
    if "segmentation" in changes and "bbox" not in changes:  # which nobody needs without masks
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


def test_boxes_of_zero_size_can_be_dropped(root):
    write(root, "val", bad(lambda d, a: a.update(bbox=[5, 3, 15, 0])))
    with pytest.warns(UserWarning, match=r"1 of 3 annotations left out"):
        _, targets = validate(root, zero_boxes="drop")[0]
    assert [len(target["boxes"]) for target in targets] == [2, 0, 0]
