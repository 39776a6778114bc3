"""ELU + 1 linear attention: parity with the official code, quadratic form."""

import torch
import torch.nn.functional as F

from softmaxfree.mixers import create_mixer
from tests.mixers.parity import MAX_ERROR, both_precisions, check_core, load


def mixer(dtype: torch.dtype = torch.float64):
    return create_mixer("elu_linear", dim=24, num_heads=3, dtype=dtype)


@both_precisions
def test_core_is_the_official_one(dtype):
    tensors, grid = load("elu_linear")
    check_core(mixer(dtype), tensors, grid, dtype)


@both_precisions
def test_core_with_a_mask_is_the_official_one(dtype):
    tensors, _ = load("elu_linear")
    mask = tensors["masked.key_mask"].bool()
    assert not mask.all()
    check_core(mixer(dtype), tensors, [20], dtype, "masked.", mask=mask)  # the official mask is of a sequence


def test_it_is_its_quadratic_form():
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    weights = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)
    expected = weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v
    torch.testing.assert_close(mixer().mix(q, k, v, [6, 7]), expected, rtol=0, atol=MAX_ERROR)


def test_tokens_may_stand_in_any_order():
    x, order = torch.randn(2, 42, 24, dtype=torch.float64), torch.randperm(42)
    layer = mixer()
    torch.testing.assert_close(layer(x[:, order], [6, 7]), layer(x, [6, 7])[:, order], rtol=0, atol=MAX_ERROR)


def test_equal_tokens_give_their_value():
    v = torch.randn(1, 1, 1, 8, dtype=torch.float64).expand(2, 3, 42, 8)
    q = torch.randn(2, 3, 1, 8, dtype=torch.float64).expand(2, 3, 42, 8)
    torch.testing.assert_close(mixer().mix(q, q, v, [6, 7]), v, rtol=1e-6, atol=0)


def test_float32_sums_keep_what_half_precision_would_lose():
    q, k, v = torch.randn(3, 1, 1, 9216, 8).unbind()
    exact = mixer().mix(q.double(), k.double(), v.double() + 100, [96, 96])
    half = mixer().mix(q.half(), k.half(), (v + 100).half(), [96, 96])  # the sums pass what float16 can hold
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), exact, rtol=1e-3, atol=0)
