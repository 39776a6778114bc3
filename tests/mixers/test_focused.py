"""Focused linear attention: parity with the official code, its quadratic form, the power."""

import math

import pytest
import torch

from softmaxfree.mixers import create_mixer
from tests.mixers.parity import both_precisions, check_core, check_module, load
from tests.mixers.switches import assert_switches_keep_the_contract, make, official_module, random_qkv

NAMES = ("scale", "positional_encoding")


def parameters(weights: dict) -> dict:
    """Returns parameters that belong to `mix` under our names."""
    return {"temperature": weights["scale"].flatten(), "positions.table": weights["positional_encoding"]}


def from_official(weights: dict) -> dict:
    """Returns weights of the official module under our names."""
    renamed = parameters(weights)
    for kind in ("weight", "bias"):
        renamed[f"qkv.{kind}"] = torch.cat([weights[f"q.{kind}"], weights[f"kv.{kind}"]])
        renamed[f"value_conv.{kind}"] = weights[f"dwc.{kind}"]
        renamed[f"proj.{kind}"] = weights[f"proj.{kind}"]
    return renamed


@both_precisions
def test_the_core_is_the_official_one(dtype):
    tensors, grid = load("focused")
    mixer = make("focused", dtype, position_grid=(4, 5))
    check_core(mixer, tensors, grid, dtype, names=NAMES, weights=parameters)


@both_precisions
def test_the_module_is_the_official_one(dtype):
    mixer = make("focused", dtype, position_grid=(4, 5), value_kernel=5)
    check_module(official_module(mixer, from_official), load("focused")[0], dtype)


def features(x, power):
    """Returns the features of `(B, H, N, D)` at the start, where softplus(temperature) is ln 2, from the formula."""
    t = (x.relu().transpose(1, 2).flatten(2) + 1e-6) / math.log(2)
    t = t**power * t.norm(dim=-1, keepdim=True) / (t**power).norm(dim=-1, keepdim=True)
    return t.unflatten(-1, (3, 8)).transpose(1, 2)


@pytest.mark.parametrize("power", [1.0, 3, 6.5])
def test_it_is_its_quadratic_form(power):
    q, k, v = random_qkv()
    weights = features(q, power) @ features(k, power).mT
    expected = weights / (weights.sum(-1, keepdim=True) + 20e-6) @ v
    out = make("focused", focusing_factor=power).mix(q, k, v, [4, 5])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_rows_are_positive_and_grow_sharper_with_the_power():
    q, k, _ = random_qkv()
    identity = torch.eye(20, dtype=torch.float64).expand(2, 3, 20, 20)
    rows = [make("focused", focusing_factor=power).mix(q, k, identity, [4, 5]) for power in (1, 3, 9)]
    assert all((row > 0).all() for row in rows)
    entropies = [torch.special.entr(row).sum(-1).mean() for row in rows]
    assert entropies[0] > entropies[1] > entropies[2]


def test_a_large_power_of_small_or_large_inputs_stays_finite():
    for scale in (1e-3, 1e3):
        q, k, v = (x.float().requires_grad_() for x in random_qkv(scale=scale))
        out = make("focused", torch.float32, focusing_factor=60).mix(q, k, v, [4, 5])
        assert out.isfinite().all()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), (q, k, v)))


def test_all_heads_share_the_filters_of_the_values():
    mixer = make("focused", value_kernel=5)
    assert mixer.value_conv.weight.shape == (8, 1, 5, 5)
    v = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    heads = v.flatten(0, 1).transpose(1, 2).unflatten(2, (4, 5))
    expected = mixer.value_conv(heads).flatten(2).transpose(1, 2).unflatten(0, (2, 3)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer.convolve(v, [4, 5]), expected, rtol=0, atol=1e-12)


def test_positions_reach_other_grids():
    mixer = make("focused", position_grid=(3, 3))
    x = torch.randn(2, 20, 24, dtype=torch.float64)
    before = mixer(x, [4, 5])
    torch.testing.assert_close(before, make_like(mixer)(x, [4, 5]), rtol=0, atol=1e-12)  # they start from 0
    mixer.positions.table.data.normal_()
    assert (mixer(x, [4, 5]) - before).abs().max() > 1e-2


def make_like(mixer):
    """Returns a mixer with the same weights, without positions."""
    plain = make("focused")
    plain.load_state_dict({key: value for key, value in mixer.state_dict().items() if "positions" not in key})
    return plain


def test_its_switches_keep_the_contract():
    assert_switches_keep_the_contract("focused", position_grid=(5, 3), value_kernel=5, gate=True, focusing_factor=4)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="focusing_factor must be 0 or more, got -1"):
        create_mixer("focused", dim=24, num_heads=3, focusing_factor=-1)
    with pytest.raises(ValueError, match="position_grid must be a list of 2 whole numbers, 1 or more, got 7"):
        create_mixer("focused", dim=24, num_heads=3, position_grid=7)
