"""Spatial-reduction attention: parity with the official module, softmax as a limit, grids that do not divide."""

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from tests.mixers.parity import MAX_ERROR, both_precisions, call, check_module, load


def mixer(dtype: torch.dtype = torch.float64, dim: int = 24, **own):
    torch.manual_seed(0)
    return create_mixer("spatial_reduction", dim=dim, num_heads=3, dtype=dtype, **own)


@both_precisions
def test_module_is_the_official_one(dtype):
    tensors, _ = load("linformer")

    def run(x, official):
        weights = {}
        for kind in ("weight", "bias"):
            weights[f"k.{kind}"], weights[f"v.{kind}"] = official[f"kv.{kind}"].chunk(2)
            for ours, name in {"q": "q", "reduction": "sr", "norm": "norm", "proj": "proj"}.items():
                weights[f"{ours}.{kind}"] = official[f"{name}.{kind}"]
        return call(mixer(dtype, dim=12, ratio=2), weights, x, [6, 10])

    check_module(run, tensors, dtype, "pvt.")


def test_without_reduction_it_is_softmax_attention():
    layer, softmax = mixer(ratio=1), create_mixer("softmax", dim=24, num_heads=3, dtype=torch.float64)
    weights = {f"proj.{kind}": getattr(layer.proj, kind) for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        weights[f"qkv.{kind}"] = torch.cat([getattr(part, kind) for part in (layer.q, layer.k, layer.v)])
    softmax.load_state_dict(weights)
    x = torch.randn(2, 43, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x, [6, 7]), softmax(x, [6, 7]), rtol=0, atol=MAX_ERROR)


def test_it_is_its_quadratic_form():
    layer, x = mixer(ratio=3), torch.randn(1, 42, 24, dtype=torch.float64)
    image = torch.zeros(6, 9, 24, dtype=torch.float64)
    image[:, :7] = x.view(6, 7, 24)
    windows = image.view(2, 3, 3, 3, 24).transpose(1, 2).flatten(0, 1)  # 2 x 3 windows of 3 x 3
    tokens = torch.einsum("wyxc,dcyx->wd", windows, layer.reduction.weight) + layer.reduction.bias
    tokens = layer.norm(tokens)
    q, k, v = (part(own).unflatten(-1, (3, 8)) for part, own in ((layer.q, x[0]), (layer.k, tokens), (layer.v, tokens)))
    weights = (torch.einsum("nhd,mhd->hnm", q, k) * 8**-0.5).softmax(-1)
    expected = layer.proj(torch.einsum("hnm,mhd->nhd", weights, v).flatten(1))
    torch.testing.assert_close(layer(x, [6, 7])[0], expected, rtol=0, atol=MAX_ERROR)


def test_keys_and_values_may_be_of_other_tokens():
    layer = mixer()
    q, k, v = (torch.randn(1, 3, 42, 8, dtype=torch.float64) for _ in range(3))
    assert torch.equal(layer.mix(q, k, k.clone(), [6, 7]), layer.mix(q, k, k, [6, 7]))
    assert not torch.allclose(layer.mix(q, k, v, [6, 7]), layer.mix(q, k, k, [6, 7]))


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="ratio must be 1 or more, got 0"):
        mixer(ratio=0)
