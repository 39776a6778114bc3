"""PolaFormer: parity with the official code, its quadratic form, the signs."""

import math

import pytest
import torch

from softmaxfree.mixers import create_mixer
from tests.mixers.parity import both_precisions, check_core, check_module, load
from tests.mixers.switches import assert_switches_keep_the_contract, make, official_module, random_qkv

NAMES = ("scale", "power", "positional_encoding")


def parameters(weights: dict) -> dict:
    """Returns parameters that belong to `mix` under our names."""
    positions, power = weights["positional_encoding"], weights["power"].squeeze(0)
    return {"temperature": weights["scale"].flatten(), "power": power, "positions.table": positions}


def from_official(weights: dict) -> dict:
    """Returns weights of the official module under our names."""
    renamed = parameters(weights)
    for kind in ("weight", "bias"):
        q, gate = weights[f"qg.{kind}"].chunk(2)
        renamed[f"qkv.{kind}"], renamed[f"gate.{kind}"] = torch.cat([q, weights[f"kv.{kind}"]]), gate
        renamed[f"value_conv.{kind}"] = weights[f"dwc.{kind}"]
        renamed[f"proj.{kind}"] = weights[f"proj.{kind}"]
    return renamed


@both_precisions
def test_the_core_is_the_official_one(dtype):
    tensors, grid = load("polaformer")
    mixer = make("polaformer", dtype, position_grid=(4, 5))
    check_core(mixer, tensors, grid, dtype, names=NAMES, weights=parameters)


@both_precisions
def test_the_module_is_the_official_one(dtype):
    mixer = make("polaformer", dtype, position_grid=(4, 5), value_kernel=5, gate=True)
    check_module(official_module(mixer, from_official), load("polaformer")[0], dtype)


def products(q, k, alpha=4.0):
    """Returns products of parts with the same and with opposite signs at the start, from the formula."""
    parts = [[(sign * x / math.log(2)).relu() ** (1 + alpha / 2) for sign in (1, -1)] for x in (q, k)]
    (q_plus, q_minus), (k_plus, k_minus) = parts
    return q_plus @ k_plus.mT + q_minus @ k_minus.mT, q_minus @ k_plus.mT + q_plus @ k_minus.mT


@pytest.mark.parametrize("alpha", [0, 2.5, 4.0])
def test_it_is_its_quadratic_forms(alpha):
    q, k, v = random_qkv()
    same, opposite = (w / (w.sum(-1, keepdim=True) + 20e-6) for w in products(q, k, alpha))
    expected = torch.cat([same @ v[..., :4], opposite @ v[..., 4:]], -1)
    out = make("polaformer", alpha=alpha).mix(q, k, v, [4, 5])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_without_a_power_the_two_products_differ_by_that_of_plain_queries_and_keys():
    q, k, _ = random_qkv()
    same, opposite = products(q, k, alpha=0)
    torch.testing.assert_close(same - opposite, q @ k.mT / math.log(2) ** 2, rtol=0, atol=1e-10)


def test_the_other_sign_of_the_queries_swaps_the_halves():
    q, k, v = random_qkv()
    mixer = make("polaformer")
    swapped = mixer.mix(-q, k, v.roll(4, -1), [4, 5])
    torch.testing.assert_close(swapped.roll(4, -1), mixer.mix(q, k, v, [4, 5]), rtol=0, atol=1e-12)


def test_rows_are_positive_and_each_half_sums_to_one():
    q, k, v = random_qkv()
    identity = torch.cat([torch.eye(20, dtype=torch.float64)] * 2, -1).expand(2, 3, 20, 40)
    rows = make("polaformer").mix(q, k, identity, [4, 5])
    assert (rows >= 0).all()
    sums = make("polaformer").mix(q, k, torch.ones_like(v), [4, 5])
    torch.testing.assert_close(sums, torch.ones_like(v), rtol=0, atol=1e-3)


def test_zeros_have_finite_gradients():
    mixer = make("polaformer")
    q, k, v = random_qkv()
    q[:, :, ::2], k[..., ::2] = 0, 0
    inputs = [q.requires_grad_(), k.requires_grad_(), mixer.power]
    grads = torch.autograd.grad(mixer.mix(q, k, v, [4, 5]).square().sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)


def test_its_switches_keep_the_contract():
    assert_switches_keep_the_contract("polaformer", position_grid=(5, 3), value_kernel=5, gate=True, alpha=2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_heads must be one that makes heads of an even width of 24, got 8"):
        create_mixer("polaformer", dim=24, num_heads=8)
    with pytest.raises(ValueError, match="alpha must be 0 or more, got -1"):
        create_mixer("polaformer", dim=24, num_heads=3, alpha=-1)
    with pytest.raises(ValueError, match="position_grid must be a list of 2 whole numbers, 1 or more, got 7"):
        create_mixer("polaformer", dim=24, num_heads=3, position_grid=7)
