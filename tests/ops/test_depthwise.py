"""Filters of single channels: torch's convolution, and the same numbers where it computes in another precision."""

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.ops.depthwise import depthwise


def made(axes, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, *(9, 7)[:axes]), (6, 1, *(5,) * axes), (6,)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def torchs(x, weight, bias):
    return (F.conv1d if x.ndim == 3 else F.conv2d)(x, weight, bias, padding="same", groups=6)


def outcome(function, tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    out.square().sum().backward()
    return out.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_floats_are_those_of_torch(axes, dtype):
    for one, other in zip(outcome(depthwise, made(axes, dtype)), outcome(torchs, made(axes, dtype)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_is_float32_rounded_once(axes, dtype):
    tensors = made(axes, dtype)
    results = outcome(depthwise, tensors)
    assert {result.dtype for result in results} == {dtype}
    exact = outcome(lambda *given: torchs(*given).to(dtype).float(), [tensor.float() for tensor in tensors])
    for result, expected in zip(results, exact, strict=True):
        torch.testing.assert_close(result.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("axes", [1, 2])
def test_autocast_gives_what_it_gives_for_a_convolution(axes):
    tensors = made(axes, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = outcome(depthwise, tensors), outcome(torchs, tensors)
        with torch.no_grad():
            assert torch.equal(depthwise(*tensors), torchs(*tensors))
        assert depthwise(*(tensor.double() for tensor in tensors)).dtype == torch.float64
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * other.abs().max().item())
