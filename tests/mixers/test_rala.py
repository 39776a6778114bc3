"""RALA: parity with the official code, its quadratic form, the weights of its keys."""

import pytest
import torch
from torch.nn.functional import elu

from softmaxfree.mixers import create_mixer
from softmaxfree.mixers.rope import rotate
from tests.mixers.parity import both_precisions, check_core, check_module, load
from tests.mixers.switches import assert_switches_keep_the_contract, make, official_module, random_qkv
from tests.mixers.test_mala import from_official


@both_precisions
@pytest.mark.parametrize(("variant", "rope"), [("", "none"), ("rope.", "numerator")])
def test_the_core_is_the_official_one(dtype, variant, rope):
    tensors, grid = load("rala")
    check_core(make("rala", dtype, rope=rope), tensors, grid, dtype, variant)


@both_precisions
def test_the_module_is_the_official_one(dtype):
    check_module(
        official_module(make("rala", dtype, rope="numerator", value_kernel=5, gate=True), from_official),
        load("rala")[0],
        dtype,
    )


def quadratic(q, k, scale=8**-0.5, turn=lambda x: x):
    """Returns the weights of each query and key."""
    q, k = elu(q) + 1, elu(k) + 1
    alpha = k.shape[2] * (scale * q.mean(2, keepdim=True) @ k.mT).softmax(-1)
    k = alpha.mT * k
    return turn(q) @ turn(k).mT / ((q @ k.mT).sum(-1, keepdim=True) + 20 * 1e-6)


@pytest.mark.parametrize("rope", ["none", "numerator"])
def test_it_is_its_quadratic_form(rope):
    q, k, v = random_qkv()
    weights = quadratic(q, k, turn=(lambda x: rotate(x, [4, 5])) if rope == "numerator" else lambda x: x)
    out = make("rala", rope=rope).mix(q, k, v, [4, 5])
    torch.testing.assert_close(out, weights @ v, rtol=0, atol=1e-10)


def test_rows_are_positive_and_sum_to_one_but_with_rope():
    q, k, _ = random_qkv(cells=14 * 14)
    identity, grid = torch.eye(196, dtype=torch.float64).expand(2, 3, 196, 196), [14, 14]
    rows = make("rala").mix(q, k, identity, grid)
    assert (rows > 0).all()
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, 196, dtype=torch.float64), rtol=0, atol=1e-6)
    turned = make("rala", rope="numerator").mix(q, k, identity, grid)
    assert 0.3 < turned.sum(-1).mean() < 0.95


def test_keys_of_one_product_with_the_mean_query_leave_plain_linear_attention():
    """All of them weigh 1 then."""
    q, k, v = random_qkv()
    q, k = q[..., :1].expand_as(q), k.sigmoid()
    k = torch.cat([k[..., :4], 1 - k[..., :4]], -1)  # phi(k) = k + 1 sums to the same for all keys
    weights = (elu(q) + 1) @ (k + 1).mT
    expected = weights / (weights.sum(-1, keepdim=True) + 20e-6) @ v
    torch.testing.assert_close(make("rala").mix(q, k, v, [4, 5]), expected, rtol=0, atol=1e-10)


def test_its_switches_keep_the_contract():
    assert_switches_keep_the_contract("rala", rope="numerator", value_kernel=5, gate=True)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="rope must be one of none, numerator, got 'both'"):
        create_mixer("rala", dim=24, num_heads=3, rope="both")
    with pytest.raises(ValueError, match="rope must be none where the width of a head, 6, is no multiple of 4"):
        create_mixer("rala", dim=24, num_heads=4, rope="numerator")
