"""MALA: parity with the official code, its quadratic form, the rotation."""

import pytest
import torch

from softmaxfree.mixers import create_mixer
from softmaxfree.mixers.rope import rotate
from tests import golden_files
from tests.mixers.parity import both_precisions, check_core, check_module, load
from tests.mixers.switches import assert_switches_keep_the_contract, from_fused, make, official_module, random_qkv


def from_official(weights: dict) -> dict:
    """Returns weights, or their gradients, of the official module under our names."""
    return from_fused(weights, "qkvo", "gate", "proj")


@both_precisions
@pytest.mark.parametrize(("variant", "rope"), [("", "none"), ("rope.", "numerator")])
def test_the_core_is_the_official_one(dtype, variant, rope):
    tensors, grid = load("mala")
    check_core(make("mala", dtype, rope=rope), tensors, grid, dtype, variant)


@both_precisions
def test_the_module_is_the_official_one(dtype):
    check_module(
        official_module(make("mala", dtype, rope="numerator", value_kernel=5, gate=True), from_official),
        load("mala")[0],
        dtype,
    )


@pytest.mark.parametrize("rope", ["none", "numerator", "both"])
def test_it_is_its_quadratic_form(rope):
    q, k, v = random_qkv()
    phi_q, phi_k = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1
    plain = phi_q @ phi_k.mT / 8**0.5 / 20
    turned = rotate(phi_q, [4, 5]) @ rotate(phi_k, [4, 5]).mT / 8**0.5 / 20
    z = (turned if rope == "both" else plain).sum(-1, keepdim=True)
    weights = (plain if rope == "none" else turned) * (1 + 1 / (z + 1e-6)) - z / 20
    out = make("mala", rope=rope).mix(q, k, v, [4, 5])
    torch.testing.assert_close(out, weights @ v, rtol=0, atol=1e-10)


def test_rows_sum_to_one_but_with_rope_in_the_numerator_alone():
    q, k, v = random_qkv(cells=14 * 14)
    ones, grid = torch.ones_like(v), [14, 14]
    sums = {rope: make("mala", rope=rope).mix(q, k, ones, grid) for rope in ("none", "numerator", "both")}
    torch.testing.assert_close(sums["none"], ones, rtol=0, atol=1e-6)
    assert sums["numerator"].mean() < 0.5
    assert (sums["both"] - 1).abs().median() < 1e-4


def test_small_queries_make_it_plain_linear_attention():
    q, k, v = random_qkv()
    q = q - 8  # z comes close to 0, yet not down to the eps of the division
    weights = q.exp() @ (torch.nn.functional.elu(k) + 1).mT
    out = make("mala").mix(q, k, v, [4, 5])
    torch.testing.assert_close(out, weights / weights.sum(-1, keepdim=True) @ v, rtol=0, atol=2e-2)


def test_a_larger_query_makes_rows_sharper():
    q, k, _ = random_qkv()
    q, k = q.abs(), k.abs()
    identity = torch.eye(20, dtype=torch.float64).expand(2, 3, 20, 20)
    mixer = make("mala")
    spread = [mixer.mix(factor * q, k, identity, [4, 5]).std(-1) for factor in (1, 3, 9)]
    assert (spread[0] < spread[1]).all()
    assert (spread[1] < spread[2]).all()


def test_order_of_the_tokens_counts_only_with_rope():
    q, k, v = random_qkv()
    order = torch.randperm(20)
    for rope, same in (("none", True), ("numerator", False)):
        mixer = make("mala", rope=rope)
        out = mixer.mix(q, k, v, [4, 5])[:, :, order]
        again = mixer.mix(q[:, :, order], k[:, :, order], v[:, :, order], [4, 5])
        assert torch.allclose(out, again, rtol=0, atol=1e-12) == same


@pytest.mark.parametrize("rope", ["numerator", "both"])
def test_its_switches_keep_the_contract(rope):
    assert_switches_keep_the_contract("mala", rope=rope, value_kernel=5, gate=True)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="rope must be one of none, numerator, both, got 'all'"):
        create_mixer("mala", dim=24, num_heads=3, rope="all")
    with pytest.raises(ValueError, match="rope must be none where the width of a head, 6, is no multiple of 4, got 'b"):
        create_mixer("mala", dim=24, num_heads=4, rope="both")
    with pytest.raises(ValueError, match="gate must be True or False"):
        create_mixer("mala", dim=24, num_heads=3, gate=1)


class TestRotation:
    def test_it_is_the_official_table(self):
        golden, _ = golden_files.load("mixers/mala")
        x = torch.randn(2, 3, 20, 8, dtype=torch.float64)
        swapped = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        expected = x * golden["rope.cos"] + swapped * golden["rope.sin"]
        torch.testing.assert_close(rotate(x, [4, 5]), expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("grid", "shift"), [([4, 5], 6), ([20], 6)])
    def test_products_depend_on_the_distance_alone(self, grid, shift):
        q, k = (torch.randn(1, 1, 1, 8, dtype=torch.float64).expand(-1, -1, 20, -1) for _ in range(2))
        products = (rotate(q, grid) @ rotate(k, grid).mT)[0, 0]
        torch.testing.assert_close(products[0, 7], products[shift, 7 + shift])  # a row and a column further on
        assert (products[0, 7] - products[0, 8]).abs() > 1e-3

    def test_lengths_stay_and_prefix_tokens_do_not_turn(self):
        x = torch.randn(2, 3, 22, 8, dtype=torch.float64)
        turned = rotate(x, [4, 5])
        torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
        torch.testing.assert_close(turned[:, :, :3], x[:, :, :3], rtol=0, atol=0)  # and the first cell is at 0
        torch.testing.assert_close(turned[:, :, 2:], rotate(x[:, :, 2:], [4, 5]), rtol=0, atol=0)
