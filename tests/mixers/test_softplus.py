"""Softplus attention: parity with the formula, limiting cases, rows without contrast."""

import math

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from tests.mixers.parity import MAX_ERROR, both_precisions, check_core, load


def mixer(dtype: torch.dtype = torch.float64, **own):
    return create_mixer("softplus", dim=24, num_heads=3, dtype=dtype, **own)


def qkv():
    return torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()


@both_precisions
@pytest.mark.parametrize(("variant", "power"), [("", 0), ("p3.", 3), ("p15.", 15)])
def test_core_is_the_formula(dtype, variant, power):
    tensors, grid = load("lssar")
    check_core(mixer(dtype, power=power), tensors, grid, dtype, variant)


@pytest.mark.parametrize("power", [0, 1, 2.5, 15])
def test_each_row_is_that_of_the_paper(power):
    q, k, v = qkv()
    expected = torch.empty_like(v)
    for image in range(2):
        for head in range(3):
            for row in range(42):
                cosine = torch.cosine_similarity(q[image, head, row], k[image, head], -1)
                weights = torch.log(1 + torch.exp(math.log(8) * math.log(42) * cosine))
                weights = weights / weights.sum()
                if power:
                    weights = torch.clamp(42 * weights - 1, min=0) ** power
                    weights = weights / weights.sum()
                expected[image, head, row] = weights @ v[image, head]
    torch.testing.assert_close(mixer(power=power).mix(q, k, v, [6, 7]), expected, rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize("power", [0, 15])
def test_lengths_of_queries_and_keys_do_not_count(power):
    q, k, v = qkv()
    layer = mixer(power=power)
    torch.testing.assert_close(layer.mix(7 * q, 0.2 * k, v, [6, 7]), layer.mix(q, k, v, [6, 7]), rtol=0, atol=MAX_ERROR)


def test_equal_tokens_get_their_own_value_and_gradients_stay_finite():
    q, k, v = (x[:, :, :1].expand(-1, -1, 42, -1).clone().requires_grad_() for x in qkv())
    out = mixer(power=15).mix(q, k, v, [6, 7])
    torch.testing.assert_close(out, v, rtol=0, atol=MAX_ERROR)
    out.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_a_high_power_stays_finite_in_half_precision_and_padding_leaves_no_trace():
    q, k, v = qkv()
    layer = mixer(power=15)
    assert layer.mix(4 * q.half(), 4 * k.half(), v.half(), [6, 7]).isfinite().all()
    mask = torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[:, :4, :5] = True
    inside = mask.flatten(1)[0]
    padded = layer.mix(q, k, v, [6, 7], mask)[:, :, inside]
    alone = layer.mix(*(x[:, :, inside] for x in (q, k, v)), [4, 5])
    torch.testing.assert_close(padded, alone, rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize("power", [-1, 0.5, "3"])
def test_a_power_below_one_is_refused(power):
    with pytest.raises(InputError, match="power must be"):
        mixer(power=power)
