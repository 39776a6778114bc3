"""Nystromformer: parity with the official code, quadratic form, softmax as a limit, padding."""

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from softmaxfree.mixers.nystrom import pseudo_inverse
from tests.mixers.parity import MAX_ERROR, both_precisions, call, check_core, check_module, load


def mixer(dtype: torch.dtype = torch.float64, **own):
    torch.manual_seed(0)
    return create_mixer("nystrom", dim=24, num_heads=3, dtype=dtype, **own)


@pytest.mark.parametrize(
    ("variant", "own"), [("", {}), ("iter20.", {"iterations": 20}), ("per_image.", {"shared_start": True})]
)
def test_core_is_the_official_one(variant, own):
    tensors, _ = load("nystrom")
    layer = mixer(ratio=4, landmark_grid=(5,), **own)  # the official segments are of 4 tokens in a row
    check_core(layer, tensors, [20], torch.float64, variant, rtol=1e-9)


@both_precisions
def test_module_is_the_official_one(dtype):
    tensors, _ = load("nystrom")
    layer = mixer(dtype, ratio=4, landmark_grid=(5,), shared_start=True, residual_kernel=7, qkv_bias=False)

    def run(x, official):
        weights = {
            "qkv.weight": official["to_qkv.weight"],
            "value_conv.weight": official["res_conv.weight"].squeeze(-1),
            "proj.weight": official["to_out.0.weight"],
            "proj.bias": official["to_out.0.bias"],
        }
        return call(layer, weights, x, [20])

    check_module(run, tensors, dtype)


@pytest.mark.parametrize("variant", ["", "per_image."])
def test_core_in_float32_is_as_near_as_its_conditioning_allows(variant):
    tensors, _ = load("nystrom")
    layer = mixer(torch.float32, ratio=4, landmark_grid=(5,), shared_start=bool(variant))
    check_core(layer, tensors, [20], torch.float32, variant)


def test_it_is_its_quadratic_form():
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    means = torch.zeros(6, 42, dtype=torch.float64)  # windows of 2 x 2 on 6 x 7, of which the last column fills none
    for i in range(6):
        y, x = i // 2, i % 2
        means[i].view(6, 7)[2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 1 / 4
    of_queries, of_keys = means[:4] @ q, means[:4] @ k
    layer = mixer(ratio=2, landmark_grid=(9, 9))
    of_queries, of_keys = (layer.landmarks(x, [6, 7]) for x in (q, k))
    rows = [(a @ b.mT * 8**-0.5).softmax(-1) for a, b in ((q, of_keys), (of_queries, of_keys), (of_queries, k))]
    expected = rows[0] @ pseudo_inverse(rows[1], 6) @ rows[2] @ v
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7]), expected, rtol=0, atol=MAX_ERROR)


def test_a_landmark_at_each_token_is_softmax_attention_once_the_inverse_is_found():
    q, k, v = torch.randn(3, 2, 3, 20, 8, dtype=torch.float64).unbind()
    expected = F.scaled_dot_product_attention(q, k, v)
    errors = [(mixer(iterations=i).mix(q, k, v, [4, 5]) - expected).abs().max().item() for i in (6, 12, 40)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] > 1e-3
    assert errors[2] < 1e-9


def test_the_inverse_of_a_well_conditioned_matrix():
    matrix = torch.eye(6, dtype=torch.float64) + 0.1 * torch.rand(2, 3, 6, 6, dtype=torch.float64)
    expected = torch.linalg.inv(matrix)
    for shared_start in (False, True):
        torch.testing.assert_close(pseudo_inverse(matrix, 20, shared_start), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [{"ratio": 2}, {"landmark_grid": (2, 3)}, {"shared_start": True}], ids=str)
def test_padding_leaves_no_trace(own):
    layer = mixer(residual_kernel=3, **own)
    x, mask = torch.randn(3, 42, 24, dtype=torch.float64), torch.ones(3, 6, 7, dtype=torch.bool)
    mask[1, 4:], mask[1, :, 5:], mask[2] = False, False, False
    alone = layer(x[1:2].view(1, 6, 7, 24)[:, :4, :5].flatten(1, 2), [4, 5])
    out = layer(x, [6, 7], mask)
    padded = out[1:2].view(1, 6, 7, 24)[:, :4, :5].flatten(1, 2)
    torch.testing.assert_close(padded, alone, rtol=0, atol=MAX_ERROR)
    assert out[2].isfinite().all()  # an image of padding alone


@pytest.mark.parametrize("shared_start", [False, True])
def test_images_do_not_change_each_other(shared_start):
    layer, x = mixer(shared_start=shared_start), torch.randn(2, 42, 24, dtype=torch.float64)
    x[1] *= 50
    torch.testing.assert_close(layer(x, [6, 7])[:1], layer(x[:1], [6, 7]), rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"ratio": 0}, "ratio must be 1 or more, got 0"),
        ({"iterations": 0}, "iterations must be 1 or more, got 0"),
        ({"shared_start": "batch"}, "shared_start must be True or False, got 'batch'"),
        ({"residual_kernel": 4}, "residual_kernel must be odd"),
        ({"residual_kernel": 3, "value_kernel": 3}, "value_kernel must be 0 with residual_kernel, got 3"),
    ],
)
def test_bad_arguments_are_named(own, message):
    with pytest.raises(InputError, match=message):
        mixer(**own)
