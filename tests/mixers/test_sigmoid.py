"""Sigmoid attention: parity with the released code, the explicit form, its bias, inference in rows."""

import math

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer, rows
from tests.mixers.parity import MAX_ERROR, both_precisions, call, check_core, check_module, load


def mixer(dtype: torch.dtype = torch.float64, **own):
    return create_mixer("sigmoid", dim=24, num_heads=3, dtype=dtype, **own)


def qkv(tokens: int = 42):
    return torch.randn(3, 2, 3, tokens, 8, dtype=torch.float64).unbind()


@both_precisions
def test_core_is_the_released_one(dtype):
    tensors, grid = load("sigmoid")
    check_core(mixer(dtype), tensors, grid, dtype)


@both_precisions
def test_module_is_the_released_one(dtype):
    tensors, grid = load("sigmoid")

    def run(x, official):
        weights = {key: value for key, value in official.items() if not key.startswith("attn_")}  # bias, temperature
        return call(mixer(dtype, qk_norm=True), weights, x, grid)

    check_module(run, tensors, dtype)


def test_it_is_its_explicit_form():
    q, k, v = qkv()
    weights = torch.sigmoid(q @ k.mT / math.sqrt(8) - math.log(42))
    torch.testing.assert_close(mixer().mix(q, k, v, [6, 7]), weights @ v, rtol=0, atol=MAX_ERROR)


def test_far_below_zero_the_bias_leaves_softmax_without_its_denominator():
    q, k, v = qkv()
    out = mixer(bias=-40.0).mix(q, k, v, [6, 7]) * math.exp(40)
    torch.testing.assert_close(out, torch.exp(q @ k.mT / math.sqrt(8)) @ v, rtol=0, atol=MAX_ERROR)


def test_keys_add_up():
    q, k, v = qkv()
    fixed = mixer(bias=-3.0)
    parts = [fixed.mix(q, *part, [6, 7]) for part in zip(k.split(17, 2), v.split(17, 2), strict=True)]
    torch.testing.assert_close(sum(parts), fixed.mix(q, k, v, [6, 7]), rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_inference_a_few_queries_at_a_time_is_the_same(name, monkeypatch):
    q, k, v = qkv()
    layer = create_mixer(name, dim=24, num_heads=3)
    with torch.no_grad():
        whole = layer.mix(q, k, v, [6, 7])
        monkeypatch.setattr(rows, "_CPU_PAIR_BYTES", 4 * 2 * 3 * 42 * 5)
        torch.testing.assert_close(layer.mix(q, k, v, [6, 7]), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bias", [math.inf, "none", True, None])
def test_a_bias_that_is_no_number_is_refused(bias):
    with pytest.raises(InputError, match="bias must be a finite number, or 'auto' for -ln N"):
        mixer(bias=bias)
