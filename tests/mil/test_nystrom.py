"""The drop-in for nystrom-attention: golden files, matrices, masks and batches, bad arguments."""

from itertools import pairwise

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mil import NystromAttention, nystrom
from tests.golden_files import below
from tests.mil.golden import BITS, MAX_ERROR, MAX_GRADIENT_ERROR, arguments, distance, tensors, weights

FILES = ["nystrom_divisible", "nystrom_remainder", "nystrom_short", "nystrom_no_conv", "nystrom_wide"]
both_precisions = pytest.mark.parametrize("dtype", list(BITS), ids=str)


def layer(name: str = "nystrom_remainder", dtype: torch.dtype = torch.float64, **changes) -> NystromAttention:
    own = NystromAttention(**arguments(name) | changes)
    own.load_state_dict(weights(name))
    return own.to(dtype).eval()


@both_precisions
@pytest.mark.parametrize("name", FILES)
def test_result_and_matrices_are_the_packages(name, dtype):
    golden = tensors(name)
    out, (f, z, b) = layer(name, dtype)(golden["x"].to(dtype), return_attn_matrices=True)
    assert distance(out, golden[f"out{BITS[dtype]}"]) < MAX_ERROR[dtype]
    for own, expected in ((f, "attn1_64"), (z, "pinv_64"), (b, "attn3_64")):
        assert distance(own, golden[expected]) < MAX_ERROR[dtype]


@pytest.mark.parametrize("name", FILES)
def test_gradients_are_the_packages(name):
    golden, own = tensors(name), layer(name)
    x = golden["x"].double().requires_grad_()
    (own(x) * golden["grad_out"]).sum().backward()
    assert distance(x.grad, golden["grad_x64"]) < MAX_GRADIENT_ERROR
    expected = below(golden, "grad64.")
    assert expected.keys() == dict(own.named_parameters()).keys()
    for key, parameter in own.named_parameters():
        assert distance(parameter.grad, expected[key]) < MAX_GRADIENT_ERROR, key


@pytest.mark.parametrize("pad_mode", ["official", "official-0.0.9", "none"])
def test_a_row_is_that_of_the_matrix_and_gives_the_result(pad_mode):
    own, x = layer(pad_mode=pad_mode, project_out=True), tensors("nystrom_remainder")["x"].double()
    _, attention = own(x, return_attn=True)
    pad = attention.shape[-1] - x.shape[1]
    for token in (0, 20, 36):
        mixed, local = own.row(x, token)
        at = token if pad_mode == "official-0.0.9" else token + pad
        torch.testing.assert_close(mixed, attention[0, :, at, pad:], rtol=0, atol=1e-14)
        summed = ((mixed + local)[:, None] @ own.values(x)).flatten()
        torch.testing.assert_close(own.to_out(summed), own(x)[0, token], rtol=0, atol=1e-13)


@pytest.mark.parametrize("pad_mode", ["official", "official-0.0.9", "none"])
def test_each_bag_of_a_batch_is_as_alone(pad_mode):
    own, width = layer(pad_mode=pad_mode), 16
    bags = [torch.randn(n, width, dtype=torch.float64) * scale for n, scale in ((37, 1), (5, 50), (32, 3))]
    x = torch.full((3, 50, width), torch.nan, dtype=torch.float64)
    mask = torch.zeros(3, 50, dtype=torch.bool)
    for i, bag in enumerate(bags):
        x[i, : len(bag)], mask[i, : len(bag)] = bag, True
    out = own(x.requires_grad_(), mask)
    for i, bag in enumerate(bags):
        assert torch.equal(out[i, : len(bag)], own(bag[None])[0])
        assert not out[i, len(bag) :].any()
    out.sum().backward()
    assert torch.equal(x.grad[~mask], torch.zeros_like(x.grad[~mask]))
    assert x.grad[mask].any()


def test_a_mask_may_have_holes():
    own, x = layer(), torch.randn(1, 20, 16, dtype=torch.float64)
    mask = torch.rand(1, 20) > 0.4
    assert torch.equal(own(x, mask)[mask], own(x[mask][None])[0])
    assert torch.equal(own(x, mask.to(torch.uint8)), own(x, mask))


def test_no_bag():
    own, x = layer(), torch.zeros(0, 20, 16, dtype=torch.float64)
    for mask in (None, torch.zeros(0, 20, dtype=torch.bool)):
        out, matrices = own(x, mask, return_attn_matrices=True)
        assert out.shape == (0, 20, 16)
        assert [tuple(own.shape) for own in matrices] == [(0, 2, 24, 8), (0, 2, 8, 8), (0, 2, 8, 24)]
    assert own(x, return_attn=True)[1].shape == (0, 2, 24, 24)
    own(x).sum().backward()
    assert not own.to_qkv.weight.grad.any()


@pytest.mark.parametrize("pad_mode", ["official", "official-0.0.9", "none"])
@pytest.mark.parametrize("name", ["nystrom_remainder", "nystrom_no_conv"])
def test_inference_in_parts_is_as_at_once(name, pad_mode, monkeypatch):
    own, x = layer(name, pad_mode=pad_mode), tensors(name)["x"].double()
    expected = own(x)  # at once, as for gradients
    for at_once in (1, 5, 36, 37):
        monkeypatch.setattr(nystrom, "_AT_ONCE", at_once)
        with torch.no_grad():
            torch.testing.assert_close(own(x), expected, rtol=0, atol=1e-14)


def test_without_zero_rows_segments_are_of_equal_length():
    own, x = layer(pad_mode="none"), tensors("nystrom_remainder")["x"].double()
    parts = own.parts(x)
    ends = [37 * i // 8 + (37 * i % 8 > 0) for i in range(9)]  # ceil(37 i / 8)
    expected = torch.stack([parts.q[0, :, a:b].mean(1) for a, b in pairwise(ends)], 1)
    torch.testing.assert_close(parts.of_queries[0], expected, rtol=0, atol=1e-15)
    assert own.parts(x[:, :5]).of_keys.shape[2] == 5


def test_bfloat16_autocast_computes_in_float32():
    own, x = layer(dtype=torch.float32), tensors("nystrom_remainder")["x"]
    with torch.autocast("cpu", torch.bfloat16):
        out = own(x)
    assert distance(out, own(x)) < 1e-2


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"heads": 0}, "heads must be 1 or more, got 0"),
        ({"residual_conv_kernel": 4}, "residual_conv_kernel must be odd, got 4"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"pad_mode": "right"}, "pad_mode must be one of official, official-0.0.9, none, got 'right'"),
        ({"project_out": False}, "heads \\* dim_head must be 8, the width, without a last layer, got 512"),
    ],
)
def test_bad_arguments_are_named(own, message):
    with pytest.raises(InputError, match=message):
        NystromAttention(8, **own)


def test_bad_input_is_named():
    own, x = layer(), torch.zeros(2, 5, 16, dtype=torch.float64)
    with pytest.raises(InputError, match=r"x must be tokens \(B, N, 16\), N 1 or more, got \(2, 5, 3\)"):
        own(x[..., :3])
    with pytest.raises(InputError, match=r"x must be tokens \(B, N, 16\), N 1 or more, got \(2, 0, 16\)"):
        own(x[:, :0])
    with pytest.raises(InputError, match=r"mask must be bool or uint8 \(2, 5\), got torch.int64"):
        own(x, torch.ones(2, 5, dtype=torch.int64))
    mask = torch.tensor([[True] * 5, [False] * 5])
    with pytest.raises(InputError, match="mask of bag 1 must be True for one token or more, got 'no valid token'"):
        own(x, mask)
    mask[1, :2] = True
    with pytest.raises(InputError, match="return_attn must be False for bags of unequal sizes"):
        own(x, mask, return_attn=True)
