"""Pictures that can be read: colours, labels, legends."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from softmaxfree.drawing import (
    BACKGROUND,
    beside_legend,
    colour,
    colour_classes,
    colours,
    count_labels,
    draw,
    entries,
    overlay,
    text,
)
from softmaxfree.drawing.colours import luminance


def test_colours_are_far_apart_and_letters_on_them_legible():
    first = np.array([colour(i) for i in range(24)], float)
    assert len({colour(i) for i in range(150)}) == 150
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(first, 2)) >= 50
    assert colour(256) == colour(0)
    for ground in {colour(i) for i in range(256)}:
        bright = luminance(ground)
        ratio = (bright + 0.05) / 0.05 if text.contrast(ground) == "black" else 1.05 / (bright + 0.05)
        assert ratio > 4.5  # WCAG's limit for text


@pytest.mark.parametrize("name", ["background", "Background", "BG", "void", "other"])
def test_the_background_and_what_has_no_class_are_not_veiled(name):
    image = torch.rand(3, 8, 10)
    classes = torch.zeros(8, 10, dtype=torch.long)
    classes[2:4], classes[5] = 1, 255
    classes[6] = -1
    drawn = draw(image, classes, [name, "road"])
    before = (image * 255).round().byte()
    assert drawn.shape == (3, 8, 10)
    changed = (drawn != before).any(0)
    assert changed[2:4].all()
    assert not changed[:2].any()
    assert not changed[4:].any()
    shown = np.asarray(colour_classes(classes, [name, "road"]))
    assert [tuple(shown[y, 0].tolist()) for y in (0, 2, 5, 6)] == [BACKGROUND, colour(1), (0, 0, 0), (0, 0, 0)]


def test_labels_are_whole_inside_the_picture_and_apart():
    random = torch.Generator().manual_seed(0)
    for width, height in ((640, 480), (90, 40), (3000, 60), (60, 3000)):
        taken = []
        for _ in range(60):
            x, y = torch.rand(2, 2, generator=random).sort(dim=1).values
            box = (x[0] * width, y[0] * height, x[1] * width, y[1] * height)
            place = text.place(list(map(float, box)), (50, 14), (width, height), taken)
            if place is not None:
                taken.append(place)
        assert taken
        assert all(min(own) >= 0 and own[2] <= width and own[3] <= height for own in taken)
        for a, b in itertools.combinations(taken, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def detections(boxes, labels=None, **more):
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels)
    return {"boxes": torch.tensor(boxes, dtype=torch.float).reshape(-1, 4), "labels": labels, **more}


def test_a_box_at_the_border_has_its_whole_label_in_the_picture():
    image = torch.zeros(3, 100, 200)
    drawn = draw(image, detections([[150.0, 0, 200, 100]], scores=torch.tensor([0.9])), ["elephant"])
    at_ground = (drawn == torch.tensor(colour(0), dtype=torch.uint8)[:, None, None]).all(0)
    width = text.font_for("elephant 0.90", 12).getlength("elephant 0.90")
    row = at_ground[1].nonzero().flatten()
    assert row[-1] == 199
    assert row[-1] - row[0] + 1 >= width


@pytest.mark.parametrize("masks", [False, True])
def test_no_objects_are_said_so(masks):
    more = {"masks": torch.zeros(0, 60, 120, dtype=torch.bool)} if masks else {}
    drawn = draw(torch.ones(3, 60, 120), detections([], **more), ["a"])
    assert (drawn[:, :15, :60] == 0).float().mean() > 0.2
    assert (drawn[:, 20:] == 255).all()


def test_what_lies_below_many_masks_stays_visible():
    image = torch.rand(3, 32, 32)
    masks = torch.ones(50, 32, 32, dtype=torch.bool)
    found = detections([[0, 0, 32, 32]] * 50, list(range(50)), masks=masks)
    drawn = draw(image, found, [""] * 50)[:, 18:-4, 4:-4]
    wanted = (image[:, 18:-4, 4:-4] * 255 + torch.tensor(colour(0))[:, None, None]) / 2
    assert (drawn - wanted).abs().max() < 2


def test_letters_and_lines_grow_with_the_picture():
    assert text.text_size(64, 64) == 12
    assert text.text_size(3000, 4000) > 80
    assert text.text_size(60, 3000) <= 15
    small, large = (
        draw(torch.zeros(3, n, n), detections([[n * 0.3, n * 0.3, n * 0.9, n * 0.9]]), ["a"]) for n in (200, 2000)
    )
    assert [(row > 0).any(0).sum() for row in (small[:, 100], large[:, 1000])] == [2 * 2, 2 * 7]  # left and right


def test_a_name_that_no_font_has_is_a_number(monkeypatch):
    monkeypatch.setattr(text.font_manager.fontManager, "ttflist", [])
    text._font_file.cache_clear()
    assert text.legible("Straße Ω ж", 3) == "Straße Ω ж"
    assert text.legible("\U0001f9ff", 3) == "class 3"
    assert text.legible(" \n", 4) == "class 4"
    assert text.legible("two\nlines", 5) == "two lines"
    text._font_file.cache_clear()


HEX = np.array([1 << 16, 1 << 8, 1])


@pytest.mark.parametrize("size", [(30, 40), (500, 400), (60, 1500), (1500, 60)])
@pytest.mark.parametrize("classes", [1, 150])
def test_a_legend_has_all_classes_that_occur_and_stays_in_the_picture(size, classes):
    names = [f"class {i} of a {'very ' * i}long name" for i in range(classes + 1)]
    counts = torch.arange(classes + 1)
    lines = entries(counts, names, "share", colours(names, BACKGROUND))
    assert len(lines) == classes
    assert lines[0].name == " ".join(names[-1].split())
    whole = np.asarray(beside_legend(Image.new("RGB", size, "red"), lines, "share"))
    assert (whole[: size[1], : size[0]] == (255, 0, 0)).all()
    beside = whole[:, size[0] :] if size[1] > 1.5 * size[0] else whole[size[1] :]
    assert (beside[:, -1] == 255).all()
    assert (beside[-1] == 255).all()
    found = dict(zip(*np.unique(beside @ HEX, return_counts=True), strict=True))
    for line in lines:
        assert found[line.colour @ HEX] >= 100


def test_pixels_and_objects_are_counted():
    assert count_labels(torch.tensor([[0, 1, 255], [1, -1, 3]]), 4).tolist() == [1, 2, 0, 1]
    assert count_labels(detections([[0, 0, 1, 1]] * 3, [2, 0, 2]), 3).tolist() == [1, 0, 2]
    lines = entries(torch.tensor([1, 0, 2999]), ["a", "b", "c"], "share")
    assert [(line.name, line.note) for line in lines] == [("c", "100.0 %"), ("a", "< 0.1 %")]


def test_a_magnified_picture_has_its_boxes_where_the_objects_are():
    picture = overlay(torch.zeros(3, 40, 50), detections([[10, 20, 30, 35]]), ["a"], 4)
    assert picture.size == (200, 160)
    assert picture.getpixel((40, 120)) == colour(0)
    assert picture.getpixel((120, 120)) == colour(0)
