"""NaLa: parity with the official code, its quadratic form, the power."""

import pytest
import torch

from softmaxfree.mixers import create_mixer
from softmaxfree.mixers.rope import rotate
from tests.mixers.parity import both_precisions, check_core, check_module, load
from tests.mixers.switches import assert_switches_keep_the_contract, from_fused, make, official_module, random_qkv

RTOL = 1e-9  # of gradients of up to 440


def from_official(weights: dict) -> dict:
    """Returns weights, or their gradients, of the official module under our names."""
    norm = {f"out_norm.{kind}": weights[f"ln.{kind}"] for kind in ("weight", "bias")}
    return from_fused(weights, "qkvg", "gate.0", "out_proj") | norm


@both_precisions
@pytest.mark.parametrize(("variant", "rope"), [("", "none"), ("rope.", "numerator")])
def test_the_core_is_the_official_one(dtype, variant, rope):
    tensors, grid = load("nala")
    check_core(make("nala", dtype, rope=rope), tensors, grid, dtype, variant, rtol=RTOL)


@both_precisions
def test_the_module_is_the_official_one(dtype):
    mixer = make("nala", dtype, rope="numerator", value_kernel=5, out_norm=True, gate=True)
    check_module(official_module(mixer, from_official), load("nala")[0], dtype)


def features(q, k):
    """Returns positive and negative half of the features of queries and keys, from the formula."""
    norm = q.norm(dim=-1, keepdim=True)
    power = 3 * (0.5 + norm.tanh())
    return [((s * q).relu() / norm) ** power for s in (1, -1)], [(s * k**3).relu() for s in (1, -1)]


@pytest.mark.parametrize("rope", ["none", "numerator"])
def test_it_is_its_quadratic_form(rope):
    q, k, v = random_qkv()
    queries, keys = features(q, k)
    plain = sum(a @ b.mT for a, b in zip(queries, keys, strict=True))
    turned = sum(rotate(a, [4, 5]) @ rotate(b, [4, 5]).mT for a, b in zip(queries, keys, strict=True))
    weights = (plain if rope == "none" else turned) / (plain.sum(-1, keepdim=True) + 20e-6)
    out = make("nala", rope=rope).mix(q, k, v, [4, 5])
    torch.testing.assert_close(out, weights @ v, rtol=0, atol=1e-10)


def rows(q, k):
    identity = torch.eye(20, dtype=torch.float64).expand(2, 3, 20, 20)
    return make("nala").mix(q, k, identity, [4, 5])


def test_rows_are_positive_and_sum_to_one():
    q, k, _ = random_qkv()
    weights = rows(q, k)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 20, dtype=torch.float64), rtol=0, atol=1e-3)


def test_only_relative_signs_count():
    q, k, _ = random_qkv()
    torch.testing.assert_close(rows(-q, -k), rows(q, k), rtol=0, atol=1e-12)
    assert (rows(-q, k) - rows(q, k)).abs().max() > 1e-2


def test_longer_queries_have_sharper_rows():
    q, k, _ = random_qkv()
    direction = q / q.norm(dim=-1, keepdim=True)
    entropies = [torch.special.entr(rows(norm * direction, k)).sum(-1).mean() for norm in (0.01, 0.5, 3)]
    assert entropies[0] > entropies[1] > entropies[2]


def test_a_query_of_zeros_gives_zeros_and_finite_gradients():
    q, k, v = random_qkv()
    q[:, :, 3] = 0
    inputs = [x.requires_grad_() for x in (q, k, v)]
    for rope in ("none", "numerator"):
        out = make("nala", rope=rope).mix(*inputs, [4, 5])
        assert out[:, :, 3].abs().max() == 0
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.square().sum(), inputs))


def test_its_switches_keep_the_contract():
    assert_switches_keep_the_contract("nala", rope="numerator", value_kernel=5, out_norm=True, gate=True)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="rope must be one of none, numerator, got True"):
        create_mixer("nala", dim=24, num_heads=3, rope=True)
    with pytest.raises(ValueError, match="out_norm must be True or False, got 'layer'"):
        create_mixer("nala", dim=24, num_heads=3, out_norm="layer")
    with pytest.raises(ValueError, match="gate must be True or False, got 1"):
        create_mixer("nala", dim=24, num_heads=3, gate=1)
