"""Landmarks: each sampling, odd grids, the budget."""

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.layers import Landmarks
from softmaxfree.layers.landmarks import pooling_matrix

pytestmark = pytest.mark.usefixtures("device")

GRIDS = [(8, 8), (9, 11), (7, 30), (17, 16)]


def tokens_of(grid, head_dim=8):
    return torch.randn(2, 3, grid[0] * grid[1], head_dim)


def as_images(tokens, grid):
    return tokens.flatten(0, 1).transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_conv_is_the_strided_convolution_shared_by_heads(grid, ratio):
    layer, tokens = Landmarks(8, ratio, max_grid=None), tokens_of(grid)
    expected = layer.act(layer.norm(layer.conv(as_images(tokens, grid)).flatten(2).transpose(1, 2)))
    torch.testing.assert_close(layer(tokens, list(grid)), expected.unflatten(0, (2, 3)))


@pytest.mark.parametrize("grid", GRIDS)
def test_mean_is_average_pooling(grid):
    tokens = tokens_of(grid)
    expected = F.avg_pool2d(as_images(tokens, grid), 2).flatten(2).transpose(1, 2).unflatten(0, (2, 3))
    torch.testing.assert_close(Landmarks(8, 2, sampling="mean")(tokens, list(grid)), expected)


@pytest.mark.parametrize("sampling", ["random", "first"])
def test_subsets_are_tokens_each_once(sampling):
    tokens = tokens_of((9, 11))
    landmarks = Landmarks(8, 2, sampling=sampling)(tokens, [9, 11])
    assert landmarks.shape == (2, 3, 20, 8)
    assert torch.equal(landmarks, Landmarks(8, 2, sampling=sampling)(tokens, [9, 11]))
    places = (landmarks[0, 0].unsqueeze(1) == tokens[0, 0]).all(-1).nonzero()[:, 1]
    assert len(places) == 20
    assert len(places.unique()) == 20
    assert torch.equal(places, torch.arange(20)) == (sampling == "first")
    if sampling == "random":  # spread over the grid, not crowded at one end
        assert 30 < places.float().mean() < 68


@pytest.mark.parametrize("size", [1, 7, 16, 17, 23, 64])
@pytest.mark.parametrize("target", [1, 7, 16])
def test_pooling_matrix_is_adaptive_average_pooling(size, target):
    x = torch.randn(5, size)
    expected = F.adaptive_avg_pool1d(x.unsqueeze(0), target)[0]
    torch.testing.assert_close(x @ pooling_matrix(size, target, x).T, expected)


@pytest.mark.parametrize("sampling", ["conv", "mean", "random", "first"])
def test_the_budget_bounds_each_axis_and_changes_nothing_below_it(sampling):
    capped, free = (
        Landmarks(8, 2, sampling=sampling, max_grid=(4, 4)),
        Landmarks(8, 2, sampling=sampling, max_grid=None),
    )
    free.load_state_dict(capped.state_dict())
    small, large = tokens_of((9, 8)), tokens_of((6, 40))
    assert torch.equal(capped(small, [9, 8]), free(small, [9, 8]))
    assert capped(large, [6, 40]).shape[2] == 3 * 4
    assert free(large, [6, 40]).shape[2] == 3 * 20


def test_the_budget_averages_before_the_norm():
    layer, tokens = Landmarks(8, 2, max_grid=(2, 3)), tokens_of((8, 14))
    pooled = F.adaptive_avg_pool2d(layer.conv(as_images(tokens, (8, 14))), (2, 3)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(tokens, [8, 14]), layer.act(layer.norm(pooled)).unflatten(0, (2, 3)))


@pytest.mark.parametrize("max_grid", [None, (3, 4)])
@pytest.mark.parametrize("sampling", ["conv", "mean", "random", "first"])
def test_masked_landmarks_are_those_of_the_valid_tokens_alone(sampling, max_grid):
    layer, sizes = Landmarks(8, 2, sampling=sampling, max_grid=max_grid), [(9, 11), (6, 11), (9, 4), (3, 2)]
    tokens, mask = tokens_of((9, 11))[:1].expand(4, -1, -1, -1), torch.zeros(4, 9, 11, dtype=torch.bool)
    for image, (height, width) in zip(mask, sizes, strict=True):
        image[:height, :width] = True
    landmarks, valid = layer(tokens, [9, 11], mask), layer.valid(mask)
    assert valid.shape == (4, landmarks.shape[2])
    for i, size in enumerate(sizes):
        alone = layer(tokens[i, :, mask[i].flatten()].unsqueeze(0), list(size))
        torch.testing.assert_close(landmarks[i, :, valid[i]], alone[0])


@pytest.mark.parametrize("sampling", ["conv", "mean", "random", "first"])
def test_an_image_smaller_than_a_window_has_no_landmark_and_stops_no_other(sampling):
    layer, tokens = Landmarks(8, 4, sampling=sampling, max_grid=(2, 1)), tokens_of((12, 8))
    mask = torch.ones(2, 12, 8, dtype=torch.bool)
    mask[1, 3:] = False
    landmarks = layer(tokens, [12, 8], mask)
    assert layer.valid(mask).sum(1).tolist() == [2, 0]
    assert landmarks.isfinite().all()
    torch.testing.assert_close(landmarks[:1], layer(tokens[:1], [12, 8]))


def test_one_exported_program_is_right_below_and_above_the_budget_with_a_mask():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.landmarks = Landmarks(4, 2, max_grid=(3, 3))

        def forward(self, tokens, mask):
            return self.landmarks(tokens, list(mask.shape[1:]), mask), self.landmarks.valid(mask)

    def given(rows, columns):
        mask = torch.zeros(2, rows, columns, dtype=torch.bool)
        mask[0], mask[1, : rows - 1, : columns - 2] = True, True
        return torch.rand(2, 1, rows * columns, 4), mask

    torch.manual_seed(0)
    model, side = Masked().eval(), torch.export.Dim.DYNAMIC
    shapes = {"tokens": {2: side}, "mask": {1: side, 2: side}}
    program = torch.export.export(model, given(10, 12), dynamic_shapes=shapes).module()
    for size in ((4, 5), (10, 5), (6, 20)):
        tokens, mask = given(*size)
        (own, valid), (found, seen) = model(tokens, mask), program(tokens, mask)
        assert torch.equal(valid, seen)
        torch.testing.assert_close(found[valid[:, None].expand(found.shape[:3])], own[valid[:, None]])
