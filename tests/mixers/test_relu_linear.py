"""ReLU linear attention: parity with the official code, quadratic form, multi-scale heads, padding."""

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from tests.mixers.parity import MAX_ERROR, both_precisions, call, check_core, check_module, load


def mixer(dtype: torch.dtype = torch.float64, **own):
    torch.manual_seed(0)
    return create_mixer("relu_linear", dim=24, num_heads=3, dtype=dtype, **own)


@both_precisions
def test_core_is_the_official_one(dtype):
    tensors, grid = load("relu_linear")
    check_core(mixer(dtype, eps=1e-15), tensors, grid, dtype)


@both_precisions
def test_module_is_the_official_one(dtype):
    tensors, grid = load("relu_linear")
    layer = mixer(dtype, eps=1e-15, scales=[5], interleaved=True, qkv_bias=False)

    def run(image, official):
        norm = official["proj.norm.weight"] * (official["proj.norm.running_var"] + 1e-5).rsqrt()
        weights = {
            "qkv.weight": official["qkv.conv.weight"].flatten(1),
            "aggregations.0.0.weight": official["aggreg.0.0.weight"],
            "aggregations.0.1.weight": official["aggreg.0.1.weight"],
            "proj.weight": norm.unsqueeze(1) * official["proj.conv.weight"].flatten(1),
            "proj.bias": official["proj.norm.bias"] - norm * official["proj.norm.running_mean"],
        }
        return call(layer, weights, image.flatten(2).transpose(1, 2), grid).transpose(1, 2).view_as(image)

    check_module(run, tensors, dtype)


def test_the_order_of_the_projection_is_a_matter_of_names():
    plain, interleaved = mixer(scales=(3,)), mixer(scales=(3,), interleaved=True)
    order = torch.arange(72).view(3, 3, 8).transpose(0, 1).flatten()
    weights = {key: value if key.startswith("proj") else value[order] for key, value in plain.state_dict().items()}
    interleaved.load_state_dict(weights)
    x = torch.randn(2, 42, 24, dtype=torch.float64)
    torch.testing.assert_close(interleaved(x, [6, 7]), plain(x, [6, 7]), rtol=0, atol=MAX_ERROR)


def test_it_is_its_quadratic_form():
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    weights = q.relu() @ k.relu().transpose(-1, -2)
    sums = weights.sum(-1, keepdim=True)
    expected = weights / (sums + 1e-6) @ v
    torch.testing.assert_close(mixer().mix(q, k, v, [6, 7]), expected, rtol=0, atol=MAX_ERROR)
    rows = mixer().mix(q, k, torch.ones_like(v), [6, 7])
    torch.testing.assert_close(rows, (sums > 0).expand_as(rows).double(), rtol=0, atol=1e-4)


def test_a_query_without_a_positive_channel_gets_nothing_and_no_wild_gradient():
    q, k, v = torch.randn(3, 1, 1, 20, 8, dtype=torch.float64).unbind()
    q[:, :, 3] = -q[:, :, 3].abs()
    q.requires_grad_()
    out = mixer().mix(q, k, v, [4, 5])
    assert out[:, :, 3].abs().max() == 0
    out.sum().backward()
    assert q.grad[:, :, 3].abs().max() == 0


def test_scales_keep_padding_exact():
    layer = mixer(scales=(3, 5))
    x, mask = torch.randn(2, 42, 24, dtype=torch.float64), torch.ones(2, 6, 7, dtype=torch.bool)
    mask[1, 4:], mask[1, :, 5:] = False, False
    alone = layer(x[1:].view(1, 6, 7, 24)[:, :4, :5].flatten(1, 2), [4, 5])
    padded = layer(x, [6, 7], mask)[1:].view(1, 6, 7, 24)[:, :4, :5].flatten(1, 2)
    torch.testing.assert_close(padded, alone, rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"scales": (4,)}, "scales must be odd"),
        ({"scales": (0,)}, "scales must be 1 or more each, got 0"),
        ({"scales": 5}, "scales must be a sequence of odd numbers, got 5"),
        ({"scales": (3,), "value_kernel": 3}, "value_kernel must be 0 with scales, got 3"),
        ({"eps": -1}, "eps must be 0 or more, got -1"),
        ({"interleaved": 1}, "interleaved must be True or False, got 1"),
    ],
)
def test_bad_arguments_are_named(own, message):
    with pytest.raises(InputError, match=message):
        mixer(**own)


def test_scales_refuse_what_has_no_place_on_an_image():
    with pytest.raises(InputError, match="takes no prefix tokens"):
        mixer(scales=(3,))(torch.zeros(1, 21, 24, dtype=torch.float64), [4, 5])
    with pytest.raises(InputError, match="must have 2 axes"):
        mixer(scales=(3,))(torch.zeros(1, 20, 24, dtype=torch.float64), [20])
