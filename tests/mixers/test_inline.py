"""InLine: parity with the official code, its quadratic form, kernels of each image."""

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.mixers import create_mixer
from tests.mixers.parity import both_precisions, check_core, check_module, load
from tests.mixers.switches import assert_switches_keep_the_contract, make, official_module, random_qkv


def from_official(weights: dict) -> dict:
    """Returns weights, or their gradients, of the official module under our names."""
    renamed = {}
    for kind in ("weight", "bias"):
        renamed[f"qkv.{kind}"] = torch.cat([weights[f"q.{kind}"], weights[f"kv.{kind}"]])
        renamed[f"proj.{kind}"] = weights[f"proj.{kind}"]
        for layer in (0, 2):
            renamed[f"dynamic_kernels.{layer}.{kind}"] = weights[f"residual.{layer}.{kind}"]
    return renamed


@both_precisions
@pytest.mark.parametrize(("variant", "feature_map"), [("", "identity"), ("exp.", "exp")])
def test_the_core_is_the_official_one(dtype, variant, feature_map):
    tensors, grid = load("inline")
    check_core(make("inline", dtype, feature_map=feature_map), tensors, grid, dtype, variant)


@both_precisions
def test_the_module_is_the_official_one(dtype):
    check_module(official_module(make("inline", dtype, dynamic_kernels=True), from_official), load("inline")[0], dtype)


@pytest.mark.parametrize("feature_map", ["identity", "exp"])
def test_it_is_its_quadratic_form(feature_map):
    q, k, v = random_qkv()
    phi = (lambda x: (0.2 * x).exp()) if feature_map == "exp" else lambda x: x
    s = phi(q) @ phi(k).mT / 8**0.5 / 20
    weights = s - s.mean(-1, keepdim=True) + 1 / 20
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-12)
    out = make("inline", feature_map=feature_map).mix(q, k, v, [4, 5])
    torch.testing.assert_close(out, weights @ v, rtol=0, atol=1e-10)


def test_keys_moved_by_one_vector_change_nothing():
    q, k, v = random_qkv()
    mixer = make("inline")
    moved = k + torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(mixer.mix(q, moved, v, [4, 5]), mixer.mix(q, k, v, [4, 5]), rtol=0, atol=1e-12)


def test_different_queries_have_different_rows_also_where_one_is_a_multiple():
    q, k, _ = random_qkv()
    identity = torch.eye(20, dtype=torch.float64).expand(2, 3, 20, 20)
    mixer = make("inline")
    rows = mixer.mix(q, k, identity, [4, 5])
    longer = mixer.mix(2 * q, k, identity, [4, 5])
    assert (rows - longer).abs().amax(-1).min() > 1e-3
    apart = torch.cdist(rows, rows) + torch.eye(20, dtype=torch.float64)
    assert apart.min() > 1e-3


@pytest.mark.parametrize("grid", [[4, 5], [20]], ids=str)
def test_each_image_is_convolved_by_its_own_kernels(grid):
    mixer = make("inline", dynamic_kernels=True)
    x = torch.randn(2, 22, 24, dtype=torch.float64)
    v = torch.randn(2, 3, 22, 8, dtype=torch.float64)
    kernels = mixer.dynamic_kernels(x.mean(1).unsqueeze(-1)).view(48, 1, 3, 3)
    rows, columns = grid if len(grid) == 2 else (1, 20)
    image = v[:, :, 2:].transpose(-1, -2).reshape(1, 48, rows, columns)
    expected = F.conv2d(image, kernels, padding=1, groups=48).view(2, 24, 20).mT
    out = mixer.local(x, v, grid)
    torch.testing.assert_close(out[:, 2:], expected, rtol=0, atol=1e-12)
    assert out[:, :2].abs().max() == 0


def test_its_switches_keep_the_contract():
    assert_switches_keep_the_contract("inline", feature_map="exp", dynamic_kernels=True, value_kernel=3)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="feature_map must be one of identity, exp, got 'relu'"):
        create_mixer("inline", dim=24, num_heads=3, feature_map="relu")
    with pytest.raises(ValueError, match="dynamic_kernels must be True or False, got 3"):
        create_mixer("inline", dim=24, num_heads=3, dynamic_kernels=3)
