"""Linformer: parity with the official code and with pooled keys, softmax as a limit, padding, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from tests import golden_files
from tests.mixers.parity import MAX_ERROR, both_precisions, check_core, load


def mixer(dtype: torch.dtype = torch.float64, dim: int = 24, **own):
    torch.manual_seed(0)
    return create_mixer("linformer", dim=dim, num_heads=3, dtype=dtype, **own)


@both_precisions
def test_core_is_the_official_one(dtype):
    tensors, grid = load("linformer")
    check_core(mixer(dtype, rank=6, max_grid=grid), tensors, grid, dtype, names=("proj_k", "proj_v"))


@both_precisions
def test_means_of_windows_are_pooled_keys_and_values(dtype):
    tensors, _ = load("linformer")
    check_core(mixer(dtype, dim=12, ratio=2), golden_files.below(tensors, "pool."), [6, 10], dtype)


@pytest.mark.parametrize("rank", [0, 42])
def test_a_sum_for_each_token_is_softmax_attention(rank):
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    layer = mixer(rank=rank, max_grid=(6, 7))
    if rank:
        for weights in (layer.proj_k, layer.proj_v):
            torch.nn.init.eye_(weights)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7]), expected, rtol=0, atol=MAX_ERROR)


def test_it_is_its_quadratic_form():
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    means = torch.zeros(2, 42, dtype=torch.float64)  # windows of 3 x 3 on 6 x 7, averaged down to one a row of windows
    means[0].view(6, 7)[:3, :6] = means[1].view(6, 7)[3:, :6] = 1 / 18
    expected = (q @ (means @ k).mT * 8**-0.5).softmax(-1) @ (means @ v)
    layer = mixer(ratio=3, landmark_grid=(2, 1))
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7]), expected, rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize("own", [{"ratio": 2}, {"landmark_grid": (3, 2)}, {"rank": 5, "max_grid": (7, 9)}], ids=str)
def test_padding_leaves_no_trace(own):
    layer = mixer(**own)
    x, mask = torch.randn(2, 42, 24, dtype=torch.float64), torch.ones(2, 6, 7, dtype=torch.bool)
    mask[1, 4:], mask[1, :, 5:] = False, False
    alone = layer(x[1:].view(1, 6, 7, 24)[:, :4, :5].flatten(1, 2), [4, 5])
    padded = layer(x, [6, 7], mask)[1:].view(1, 6, 7, 24)[:, :4, :5].flatten(1, 2)
    torch.testing.assert_close(padded, alone, rtol=0, atol=MAX_ERROR)


def test_a_sequence_with_learned_sums():
    assert mixer(rank=5, max_grid=(40,))(torch.randn(2, 37, 24, dtype=torch.float64), [37]).isfinite().all()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"ratio": 0}, "ratio must be 1 or more, got 0"),
        ({"landmark_grid": 16}, "landmark_grid must be one number for a sequence, or two for an image, got 16"),
        ({"landmark_grid": (0, 4)}, "landmark_grid must be a list of 2 whole numbers, 1 or more"),
        ({"rank": -1}, "rank must be 0 or more, got -1"),
        ({"rank": 4, "max_grid": (0, 4)}, "max_grid must be a list of 2 whole numbers, 1 or more"),
        ({"max_grid": 4}, "max_grid must be a sequence of numbers, got 4"),
    ],
)
def test_bad_arguments_are_named(own, message):
    with pytest.raises(InputError, match=message):
        mixer(**own)


def test_learned_sums_refuse_what_has_no_row():
    layer = mixer(rank=4, max_grid=(4, 5))
    with pytest.raises(InputError, match=r"grid of linformer must be at most \[4, 5\], got \[5, 4\]"):
        layer(torch.zeros(1, 20, 24, dtype=torch.float64), [5, 4])
    with pytest.raises(InputError, match="takes no prefix tokens"):
        layer(torch.zeros(1, 21, 24, dtype=torch.float64), [4, 5])


def test_learned_sums_export_with_dynamic_sizes_up_to_the_largest_grid():
    class OnMap(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = mixer(rank=4, max_grid=(16, 20))

        def forward(self, x):
            return self.mixer(x.flatten(2).transpose(1, 2), [x.shape[2], x.shape[3]])

    model, x = OnMap().eval(), torch.randn(1, 24, 7, 9, dtype=torch.float64)
    sides = {2: torch.export.Dim("height", min=2, max=16), 3: torch.export.Dim("width", min=2, max=20)}
    program = torch.export.export(model, (x,), dynamic_shapes={"x": sides}).module()
    for size in ((7, 9), (16, 20), (5, 20)):
        x = torch.randn(1, 24, *size, dtype=torch.float64)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize("other", [{"ratio": 2}, {"landmark_grid": (8, 8)}])
def test_learned_sums_take_nothing_of_means(other):
    with pytest.raises(InputError, match="ratio and landmark_grid must be left out with rank"):
        mixer(rank=4, **other)
