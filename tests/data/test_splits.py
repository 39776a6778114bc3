import random
from collections import Counter

import pytest

from softmaxfree.data.splits import draw_split, read_split, val_share
from softmaxfree.errors import InputError


def test_the_part_that_validates():
    assert [val_share(n) for n in (10, 2500, 3750, 5000, 90000)] == pytest.approx([0.2, 0.2, 0.15, 0.1, 0.1])


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_on_both_sides(seed):
    rng = random.Random(seed)
    classes = [{0, *(c for c in (1, 2, 3) if rng.random() < 0.3)} for _ in range(60)]
    classes[7] |= {8}
    classes[9] |= {8, 9}
    classes[11] = set()
    val = draw_split(classes, seed)
    assert val == draw_split(classes, seed)
    assert val != draw_split(classes, seed + 1)
    assert 10 <= sum(val) <= 15
    sides = [
        Counter(c for own, v in zip(classes, val, strict=True) if v is side for c in own) for side in (False, True)
    ]
    assert {0, 1, 2, 3, 8} <= sides[0].keys() & sides[1].keys()
    assert sides[0][9] + sides[1][9] == 1


def test_a_class_whose_images_all_have_a_rarer_one():
    for seed in range(20):
        classes = [{1, 2}, {1, 2, 3}, {1, 3}, {1}, {1}]
        val = draw_split(classes, seed)
        for label in (1, 2, 3):
            assert len({v for own, v in zip(classes, val, strict=True) if label in own}) == 2, (seed, label)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images(count):
    assert sum(draw_split([{i} for i in range(count)], 0)) == int(count > 1)
    assert sum(draw_split([{0}] * count, 0)) == int(count > 1)


WRONG = [
    ("", "must begin with the line file,split, got nothing"),
    ("image,label\na,1\n", "must begin with the line file,split, got image,label"),
    ("file,split\na,train\nb,test\n", "must be train or val, got the line b,test"),
    ("file,split\na,train\na,val\n", r"lists a twice \(1 such"),
    ("file,split\na,train\nz,val\n", "1 of its files are not in the data, such as z"),
    ("file,split\na,train\n", "1 images of the data are not in it, such as b"),
    ("file,split\na,train\nb,train\n", "has no image for val"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_file_of_splits(tmp_path, text, message):
    file = tmp_path / "split.csv"
    file.write_text('\ufefffile,split\na,train\n"b, ü",val\n', encoding="utf-8")
    assert read_split(file, ["a", "b, ü"]) == {"a": "train", "b, ü": "val"}
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_split(file, ["a", "b"])
    with pytest.raises(InputError, match=r"nowhere.csv cannot be read"):
        read_split(tmp_path / "nowhere.csv", ["a"])
