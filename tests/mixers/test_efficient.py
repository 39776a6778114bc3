"""Efficient attention: parity with the official code, quadratic form."""

import torch

from softmaxfree.mixers import create_mixer
from tests.mixers.parity import MAX_ERROR, both_precisions, call, check_core, check_module, load


def mixer(dtype: torch.dtype = torch.float64):
    return create_mixer("efficient", dim=24, num_heads=3, dtype=dtype)


@both_precisions
def test_core_is_the_official_one(dtype):
    tensors, grid = load("efficient")
    check_core(mixer(dtype), tensors, grid, dtype)


@both_precisions
def test_module_is_the_official_one(dtype):
    tensors, grid = load("efficient")

    def run(image, official):
        rows = {"qkv": ("queries", "keys", "values"), "proj": ("reprojection",)}
        weights = {
            f"{ours}.{kind}": torch.cat([official[f"{name}.{kind}"].squeeze() for name in names])
            for ours, names in rows.items()
            for kind in ("weight", "bias")
        }
        out = call(mixer(dtype), weights, image.flatten(2).transpose(1, 2), grid)
        return out.transpose(1, 2).view_as(image) + image

    check_module(run, tensors, dtype)


def test_it_is_its_quadratic_form():
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    weights = q.softmax(-1) @ k.softmax(-2).transpose(-1, -2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 42, dtype=torch.float64), rtol=0, atol=MAX_ERROR)
    torch.testing.assert_close(mixer().mix(q, k, v, [6, 7]), weights @ v, rtol=0, atol=MAX_ERROR)
