"""Pictures and files of scores."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata

from softmaxfree.errors import InputError
from softmaxfree.mil.heatmaps import (
    draw_heatmap,
    rank_scaled,
    rasterised,
    write_heatmap,
    write_scores,
    write_top_patches,
)
from softmaxfree.mil.maps import top_patches

COORDS = torch.tensor([[0, 0], [512, 0], [0, 512], [1024, 1024]])
SCORES = torch.tensor([1.0, 2.0, 3.0, -4.0])


def test_ranks_are_scipys():
    scores = torch.randint(0, 9, (50,))
    assert rank_scaled(scores).numpy() == pytest.approx(rankdata(scores.numpy(), "average") / 50, rel=1e-15)


def test_ranks_of_signed_scores_keep_the_sign():
    scores = torch.randint(-9, 9, (50,)).float()
    values = scores.numpy()
    expected = np.sign(values) * rankdata(np.abs(values), "average") / 50
    assert rank_scaled(scores).numpy() == pytest.approx(expected, rel=1e-15)


def test_a_thumbnail_is_grey_so_that_colours_tell_scores():
    stained = Image.new("RGB", (15, 20), (235, 120, 180))
    figure = draw_heatmap(SCORES, COORDS, 512, thumbnail=stained, size=(1536, 2048))
    below = np.asarray(figure.axes[0].images[0].get_array())
    assert (below == below[..., :1]).all()


def test_a_thumbnail_of_another_slide(tmp_path):
    for width, height in ((60, 80), (59, 80), (60, 79), (600, 812)):  # of levels, whose sizes are rounded
        draw_heatmap(SCORES, COORDS, 512, thumbnail=Image.new("RGB", (width, height)), size=(1536, 2048))
    for width, height in ((80, 60), (56, 80), (600, 840)):
        with pytest.raises(InputError, match=rf"whole slide of 1536 x 2048 pixels.*; got {width} x {height} pixels"):
            draw_heatmap(SCORES, COORDS, 512, thumbnail=Image.new("RGB", (width, height)), size=(1536, 2048))


def test_no_label_is_cut_off():
    figure = draw_heatmap(SCORES, COORDS, 512)
    figure.draw_without_rendering()
    label = figure.axes[1].yaxis.label.get_window_extent()
    assert label.x1 <= figure.bbox.x1


def test_patches_are_painted_where_they_lie():
    painted = rasterised(SCORES, COORDS, 512, (1536, 2048), (8, 6))
    expected = np.full((8, 6), np.nan)
    for score, (x, y) in zip(SCORES.tolist(), (COORDS // 256).tolist(), strict=True):
        expected[y : y + 2, x : x + 2] = score
    np.testing.assert_allclose(painted, expected, atol=1e-15)


def test_overlaps_are_averaged_and_what_lies_beyond_is_cut():
    painted = rasterised(torch.tensor([1.0, 4.0]), torch.tensor([[0, 0], [1, 0]]), 2, (3, 2), (2, 3))
    np.testing.assert_allclose(painted, [[1, 2.5, 4], [1, 2.5, 4]], atol=1e-15)
    assert rasterised(torch.tensor([7.0]), torch.tensor([[2, 1]]), 5, (3, 2), (2, 3))[1, 2] == 7
    tiny = rasterised(torch.tensor([1e-20]), torch.tensor([[0.6, 0.6]]), 0.01, (10, 10), (10, 10))
    assert np.nansum(tiny) == pytest.approx(1e-20)  # a patch has a pixel at least


def test_pictures(tmp_path):
    slide = Image.new("RGB", (60, 80), (200, 150, 180))
    write_heatmap(tmp_path / "over.png", SCORES, COORDS, 512, thumbnail=slide, size=(1536, 2048), title="a slide")
    with Image.open(tmp_path / "over.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    figure = draw_heatmap(SCORES, COORDS, 512, thumbnail=slide, size=(1536, 2048))
    below, above = figure.axes[0].images
    assert below.get_array().shape[2] == 3
    assert above.get_alpha() == 0.4
    assert above.get_clim() == (-1, 1)
    assert above.get_cmap().name == "coolwarm"
    assert [np.nanmin(above.get_array()), np.nanmax(above.get_array())] == [-1, 0.75]
    assert "with its sign" in figure.axes[1].get_ylabel()
    figure = draw_heatmap(SCORES.abs(), COORDS, 512)
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    assert figure.axes[0].images[0].get_cmap().name == "viridis"  # where blue would tell of nothing below 0
    assert "up to this one" in figure.axes[1].get_ylabel()
    figure = draw_heatmap(SCORES, COORDS, 512, scaling="raw")
    (alone,) = figure.axes[0].images
    assert alone.get_clim() == (-4, 4)


def test_h5_as_clam_and_trident_have_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_scores(tmp_path / "s.h5", SCORES, COORDS, {"patch_size_level0": 512, "level0_width": 1536})
    with h5py.File(tmp_path / "s.h5") as file:
        assert set(file) == {"attention_scores", "coords"}
        assert file["attention_scores"][:, 0].tolist() == SCORES.tolist()
        assert file["attention_scores"].shape == (4, 1)
        assert file["coords"][:].tolist() == COORDS.tolist()
        assert dict(file["coords"].attrs) == {"patch_size_level0": 512, "level0_width": 1536}


def test_list_of_top_patches(tmp_path):
    write_top_patches(tmp_path / "top.csv", top_patches(SCORES, 2, COORDS))
    with (tmp_path / "top.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"rank": "1", "patch": "2", "score": "3", "x": "0", "y": "512"}
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coords": None}, "coords must be given for a map"),
        ({"coords": COORDS[:2]}, r"scores and coords must be \(N,\) and \(N, 2\).*got \(4,\) and \(2, 2\)"),
        ({"scores": SCORES * torch.nan}, "scores must be finite numbers"),
        ({"patch_size": 0}, "patch_size must be level-0 pixels, above 0, got 0"),
        ({"scaling": "log"}, "scaling must be 'rank' or 'raw', got 'log'"),
        ({"thumbnail": Image.new("RGB", (2, 2))}, "size must be width and height of the slide, with a thumbnail"),
        ({"size": (1000, 1000)}, r"coords must lie in the slide of 1000 x 1000 pixels, got \[0.0, 0.0\] to \[1024.0"),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(InputError, match=message):
        draw_heatmap(**{"scores": SCORES, "coords": COORDS, "patch_size": 512} | given)
