"""Hedgehog: parity with official codes, its quadratic form, distillation of softmax."""

import pytest
import timm
import torch

from softmaxfree.mixers import create_mixer
from tests.mixers.parity import both_precisions, check_core, load
from tests.mixers.switches import assert_switches_keep_the_contract, make, random_qkv

NAMES = ("q_weight", "q_bias", "k_weight", "k_bias")
every_map = pytest.mark.parametrize("feature_map", ["joint", "separate", "exp"])


@both_precisions
@pytest.mark.parametrize(
    ("variant", "feature_map"), [("", "joint"), ("softmax.", "separate"), ("exp.", "exp")], ids=str
)
def test_the_core_is_the_official_one(dtype, variant, feature_map):
    tensors, grid = load("hedgehog")
    mixer = make("hedgehog", dtype, feature_map=feature_map)
    check_core(mixer, tensors, grid, dtype, variant, names=NAMES)


def features(y, feature_map):
    both = torch.cat([y, -y], -1)
    if feature_map == "joint":
        return (2 * both).exp() / (2 * both).exp().sum(-1, keepdim=True)
    halves = both.unflatten(-1, (2, 8)).exp()
    if feature_map == "separate":
        return (halves / halves.sum(-1, keepdim=True)).flatten(-2)
    return (halves / halves.amax(-1, keepdim=True)).flatten(-2)


@every_map
def test_it_is_its_quadratic_form(feature_map):
    q, k, v = random_qkv()
    mixer = make("hedgehog", feature_map=feature_map)  # its maps start as the identity
    weights = features(q, feature_map) @ features(k, feature_map).mT
    assert (weights > 0).all()
    expected = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(mixer.mix(q, k, v, [4, 5]), expected, rtol=0, atol=1e-10)


@every_map
def test_signs_of_both_queries_and_keys_change_nothing_at_the_start(feature_map):
    q, k, v = random_qkv()
    mixer = make("hedgehog", feature_map=feature_map)
    torch.testing.assert_close(mixer.mix(-q, -k, v, [4, 5]), mixer.mix(q, k, v, [4, 5]), rtol=0, atol=1e-12)


def test_the_maps_are_not_one_attention():
    q, k, v = random_qkv()
    outs = [make("hedgehog", feature_map=name).mix(q, k, v, [4, 5]) for name in ("joint", "separate", "exp")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (outs[one] - outs[other]).abs().max() > 1e-2


@every_map
def test_it_learns_to_mimic_softmax(feature_map):
    q, k, _ = random_qkv()
    identity = torch.eye(20, dtype=torch.float64).expand(2, 3, 20, 20)
    target = (q @ k.mT / 8**0.5).softmax(-1)
    mixer = make("hedgehog", feature_map=feature_map)
    maps = [mixer.get_parameter(name) for name in NAMES]
    optimizer, losses = torch.optim.Adam(maps, lr=0.03), []
    for _ in range(30):
        loss = -(target * mixer.mix(q, k, identity, [4, 5]).log()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    least = torch.special.entr(target).sum(-1).mean().item()
    assert losses[-1] - least < 0.7 * (losses[0] - least)


def test_maps_start_as_the_identity_in_a_network_too():
    mixer = timm.create_model("soft_nano", num_classes=3, mixer="hedgehog").mixers[0]
    for weight, bias in ((mixer.q_weight, mixer.q_bias), (mixer.k_weight, mixer.k_bias)):
        torch.testing.assert_close(weight.data, torch.eye(mixer.head_dim), rtol=0, atol=0)
        assert bias.abs().max() == 0


@every_map
def test_large_inputs_stay_finite(feature_map):
    q, k, v = random_qkv(scale=100)
    mixer = make("hedgehog", torch.float32, feature_map=feature_map)
    out = mixer.mix(q.half(), k.half(), v.half(), [4, 5])
    assert out.dtype == torch.float16
    assert out.isfinite().all()


@pytest.mark.parametrize("feature_map", ["separate", "exp"])
def test_its_switches_keep_the_contract(feature_map):
    assert_switches_keep_the_contract("hedgehog", feature_map=feature_map, value_kernel=3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="feature_map must be one of joint, separate, exp, got 'softmax'"):
        create_mixer("hedgehog", dim=24, num_heads=3, feature_map="softmax")
