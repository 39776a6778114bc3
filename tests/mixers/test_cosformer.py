"""cosFormer: parity with the official code, quadratic forms, own positions beside padding."""

import math

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from tests.mixers.parity import MAX_ERROR, both_precisions, call, check_core, check_module, load


def mixer(dtype: torch.dtype = torch.float64, **own):
    torch.manual_seed(0)
    return create_mixer("cosformer", dim=24, num_heads=3, dtype=dtype, **own)


@both_precisions
def test_core_is_the_official_one(dtype):
    tensors, grid = load("cosformer")
    check_core(mixer(dtype), tensors, grid, dtype)


@both_precisions
def test_module_is_the_official_one(dtype):
    tensors, grid = load("cosformer")

    def run(x, official):
        weights = {f"proj.{kind}": official[f"out_proj.{kind}"] for kind in ("weight", "bias")}
        for kind in ("weight", "bias"):
            weights[f"qkv.{kind}"] = torch.cat([official[f"{name}_proj.{kind}"] for name in "qkv"])
        return call(mixer(dtype), weights, x, grid)

    check_module(run, tensors, dtype)


@pytest.mark.parametrize("positions", ["raster", "grid"])
def test_it_is_its_quadratic_form(positions):
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    i = torch.arange(42, dtype=torch.float64)
    y, x = (i / 7).floor(), i % 7
    places = [i / 42] if positions == "raster" else [y / 6, x / 7]
    weights = q.relu() @ k.relu().transpose(-1, -2)
    for place in places:
        weights = weights * torch.cos(math.pi / 2 * (place.unsqueeze(1) - place))
    sums = weights.sum(-1, keepdim=True)
    layer = mixer(positions=positions)
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7]), weights / sums.clamp(min=1e-6) @ v, rtol=0, atol=MAX_ERROR)
    assert (sums > 0).all()
    rows = layer.mix(q, k, torch.ones_like(v), [6, 7])
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0, atol=MAX_ERROR)


def test_on_one_row_both_positions_are_the_same():
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    expected = mixer()(x, [9])
    for grid in ([1, 9], [9, 1], [9]):
        torch.testing.assert_close(mixer(positions="grid")(x, grid), expected, rtol=0, atol=MAX_ERROR)


def test_positions_on_the_grid_keep_padding_exact():
    layer = mixer(positions="grid")
    x, mask = torch.randn(2, 42, 24, dtype=torch.float64), torch.ones(2, 6, 7, dtype=torch.bool)
    mask[1, 4:], mask[1, :, 5:] = False, False
    alone = layer(x[1:].view(1, 6, 7, 24)[:, :4, :5].flatten(1, 2), [4, 5])
    padded = layer(x, [6, 7], mask)[1:].view(1, 6, 7, 24)[:, :4, :5].flatten(1, 2)
    torch.testing.assert_close(padded, alone, rtol=0, atol=MAX_ERROR)


def test_what_is_refused():
    with pytest.raises(InputError, match="positions must be one of raster, grid, got 'polar'"):
        mixer(positions="polar")
    with pytest.raises(InputError, match="takes no prefix tokens"):
        mixer(positions="grid")(torch.zeros(1, 21, 24, dtype=torch.float64), [4, 5])
