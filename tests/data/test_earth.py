import numpy as np
import pytest
import torch

from softmaxfree.data import EarthDataModule, earth_labels
from softmaxfree.data.earth_labels import rasterise, read_earth
from softmaxfree.errors import InputError

HEIGHT = 675  # an eighth
OCEAN, LAND, LAKE, ICE = range(4)


def box(level, west, east, south, north):
    return level, np.array([[west, south], [east, south], [east, north], [west, north]], float)


@pytest.fixture(scope="module")
def data():
    module = EarthDataModule(height=HEIGHT, img_size=64, max_size=256, val_size=300, windows=80)
    module.setup("fit")
    return module


def test_what_lies_on_top_hides_what_is_below():
    island, lake, land = box(3, 5, 10, 5, 10), box(2, 0, 20, 0, 20), box(1, -30, 30, -30, 30)
    labels = rasterise([island, lake, land, box(5, -180, 180, -90, -60)], 180)  # a pixel a degree, in any order
    assert labels.shape == (180, 360)
    # the middles of the pixels at these degrees; row 0 is the north
    at = {(lat, lon): labels[89 - lat, 180 + lon] for lat in (-70, 2, 7, 25, 50) for lon in (-170, -20, 2, 7, 170)}
    assert at[7, 7] == LAND  # the island
    assert at[2, 7] == at[7, 2] == LAKE
    assert at[25, 7] == at[2, -20] == LAND
    assert all(at[-70, lon] == ICE for lon in (-170, 2, 170))
    assert all(at[50, lon] == OCEAN for lon in (-170, 2, 170))
    assert (labels == LAND).sum() + (labels == LAKE).sum() == pytest.approx(60 * 60, rel=0.05)


@pytest.mark.parametrize(("west", "east"), [(170, 190), (-190, -170)])
def test_what_crosses_the_date_line_is_on_both_sides(west, east):
    labels = rasterise([box(1, west, east, 0, 20)], 180)
    columns = labels[80].nonzero()[0]
    assert set(columns) >= {*range(10), *range(350, 360)}
    assert len(columns) <= 22


def test_the_labels_of_the_earth():
    relief, labels = read_earth(HEIGHT)
    assert relief.shape == (HEIGHT, 2 * HEIGHT, 3)
    parts = np.bincount(labels.ravel(), minlength=4) / labels.size
    assert np.allclose(parts, [0.656, 0.236, 0.005, 0.103], atol=1e-3)  # those at the full height, to three digits
    places = {
        (0, -30): OCEAN, (-5, -60): LAND, (50, 100): LAND, (72, -40): LAND, (-80, 60): ICE, (-80, -100): ICE,
        (42, 51): LAKE, (-1, 33): LAKE, (47.7, -87): LAKE, (-40, 175.5): LAND,
    }  # fmt: skip
    for (latitude, longitude), label in places.items():
        row, column = int((90 - latitude) * HEIGHT / 180), int((longitude + 180) * HEIGHT / 180)
        assert labels[row, column] == label, (latitude, longitude)
    deep = relief[..., 2].astype(int) - relief[..., 0] > 50  # blue over red
    assert (labels[deep] == OCEAN).mean() > 0.999  # of what is drawn as deep sea
    assert deep[labels == OCEAN].mean() > 0.85


def test_windows_of_one_half_train_and_all_of_the_other_is_validated(data):
    assert data.num_classes == len(data.class_names) == 4
    assert data.num_images == {"val": 9, "train": 80}
    relief, labels = read_earth(HEIGHT)
    assert data.class_counts == tuple(np.bincount(labels[:, :HEIGHT].ravel(), minlength=4))
    tiles = [data._sets["val"][i] for i in range(9)]
    rows = [torch.cat([image for image, _ in tiles[i : i + 3]], 2) for i in (0, 3, 6)]
    whole = (torch.cat(rows, 1) * 255).round().byte()
    assert torch.equal(whole, torch.tensor(relief[:, HEIGHT:]).permute(2, 0, 1))
    rows = [torch.cat([labels for _, labels in tiles[i : i + 3]], 1) for i in (0, 3, 6)]
    assert torch.equal(torch.cat(rows), torch.tensor(labels[:, HEIGHT:]).long())
    assert "western half" in data.found


def test_the_windows_of_a_batch_have_one_side_and_fewer_are_larger(data):
    sides = {}
    for images, labels in data.train_dataloader():
        (side,) = {side for image in images for side in image.shape[1:]}
        assert [tuple(own.shape) for own in labels] == [(side, side)] * len(images)
        sides[side] = len(images)
    assert min(sides) >= 64
    assert max(sides) <= 256
    assert len(sides) > 5
    assert all(2 <= count <= 8 and count <= max(2, 8 * (64 / side) ** 2 + 0.5) for side, count in sides.items())


def test_focus_shows_each_class_in_a_quarter_of_the_windows_or_more():
    shown = {}
    for focus in (0.0, 1.0):
        module = EarthDataModule(height=HEIGHT, img_size=32, max_size=32, windows=200, focus=focus, hflip=0)
        module.setup("fit")
        windows = [labels for _, labels in module._sets["train"]]
        shown[focus] = [sum(bool((labels == label).any()) for labels in windows) / 200 for label in range(4)]
    assert min(shown[1.0]) > 0.2
    assert shown[0.0][ICE] < 0.17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 16}, "data.img_size must be 32 or more, got 16"),
        ({"img_size": 700, "max_size": 700, "height": 675}, "data.img_size must be at most data.height, 675, got 700"),
        ({"img_size": 300, "max_size": 256}, "data.max_size must be at least data.img_size, 300, got 256"),
        ({"focus": 1.5}, "data.focus must be at most 1, got 1.5"),
        ({"windows": 0}, "data.windows must be 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        EarthDataModule(**arguments)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(earth_labels, "_PACKAGE", "no-such-package")
    with pytest.raises(InputError, match=r"pip install 'softmaxfree\[earth\]'"):
        EarthDataModule(height=64, img_size=32, max_size=64, val_size=32).setup("fit")
