"""The kernel sees only differences, so points far from the origin are as good as near ones, in any implementation."""

import pytest
import torch
from torch import Tensor

from softmaxfree import ops
from softmaxfree.ops import gaussian
from tests.helpers import assert_no_worse_than
from tests.ops import contract
from tests.ops.contract import points

SHIFTS = [0, 0.5, 3, 30, 100, 1000]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def centred_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Plain torch that centres."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y = x.to(wide), y.to(wide)
    c = y.detach().mean(-2, keepdim=True)
    x, y = x - c, y - c
    distance2 = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2) - 2 * x @ y.mT
    return torch.exp(-distance2.clamp_min(0) / 2)


def shifted(shift: float, *counts: int, dtype: torch.dtype) -> list[Tensor]:
    """Returns points of two images and two heads, each head shifted to another place."""
    place = torch.tensor([[1.0, -1.0], [0.5, 1.0]])[..., None, None] * shift
    return [(points(2, 2, count, 16) + place).to(dtype) for count in counts]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", SHIFTS)
def test_product(implementation: str, shift: float, dtype: torch.dtype):
    def definition(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        kernel = centred_kernel(x, y)
        return (kernel @ b.to(kernel.dtype)).to(b.dtype)

    for n, m in ((70, 49), (49, 70)):
        inputs = [*shifted(shift, n, m, dtype=dtype), torch.randn(2, 2, m, 8).to(dtype)]
        contract.check_values_and_gradients(ops.gaussian_product, definition, inputs, torch.randn(2, 2, n, 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", SHIFTS)
def test_tied_product(implementation: str, shift: float, dtype: torch.dtype):
    def definition(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> Tensor:
        kernel = centred_kernel(x, y)
        return (kernel @ (z @ (kernel.mT @ v.to(z.dtype)))).to(v.dtype)

    x, y = shifted(shift, 70, 49, dtype=dtype)
    inputs = [x, y, torch.randn(2, 2, 49, 49) / 49, torch.randn(2, 2, 70, 8).to(dtype)]
    contract.check_values_and_gradients(gaussian.tied_product, definition, inputs, torch.randn(2, 2, 70, 8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", SHIFTS)
def test_gram(shift: float, dtype: torch.dtype):
    (x,) = shifted(shift, 49, dtype=dtype)
    gram, grad = ops.gaussian_gram(x), torch.randn(2, 2, 49, 49)
    assert (gram.diagonal(dim1=-2, dim2=-1) == 1).all()
    contract.check_values_and_gradients(ops.gaussian_gram, lambda x: centred_kernel(x, x), [x.float()], grad)
    assert torch.equal(gram, ops.gaussian_gram(x.float()))


@pytest.mark.parametrize("shift", SHIFTS)
def test_attention(implementation: str, shift: float):
    """Powers of two shift points that keep their bits, so both places have one answer."""
    step = 2.0**-6
    q, landmarks = ((points(4, 2, count, 16) / step).round() * step for count in (197, 25))
    v, place = torch.randn(4, 2, 197, 16), float(round(shift))
    wide_q, wide_landmarks, wide_v = q.double(), landmarks.double(), v.double()
    kernel = centred_kernel(wide_q, wide_landmarks)
    expected = kernel @ ops.pinv(centred_kernel(wide_landmarks, wide_landmarks), ops.Newton(ridge=0.01)) @ kernel.mT
    expected = expected @ wide_v
    here = ops.nystrom_attention(q, q, v, landmarks)
    far = ops.nystrom_attention(q + place, q + place, v, landmarks + place)
    assert_no_worse_than(far, here, expected)
    exact = kernel @ wide_v[:, :, :25]
    near = ops.gaussian_attention(q, landmarks, v[:, :, :25])
    assert_no_worse_than(ops.gaussian_attention(q + place, landmarks + place, v[:, :, :25]), near, exact)


@pytest.mark.parametrize("garbage", [0.0, 1e4, 1e30, torch.nan])
def test_padding_does_not_move_the_centre(implementation: str, garbage: float):
    """Nor does it reach the gradients."""
    q, k, landmarks = (points(2, 2, count, 16) + 100 for count in (40, 31, 9))
    v = torch.randn(2, 2, 31, 16)
    mask, landmark_mask = torch.arange(31).expand(2, 31) < 20, torch.arange(9).expand(2, 9) < 6
    expected = ops.nystrom_attention(q, k[:, :, :20], v[:, :, :20], landmarks[:, :, :6])
    k[:, :, 20:], landmarks[:, :, 6:], v[:, :, 20:] = garbage, garbage, garbage
    leaves = [x.requires_grad_() for x in (q, k, v, landmarks)]
    out = ops.nystrom_attention(*leaves, mask=mask, landmark_mask=landmark_mask)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    out.square().sum().backward()
    for x in leaves:
        assert x.grad.isfinite().all()
    assert not k.grad[:, :, 20:].any()
    assert not landmarks.grad[:, :, 6:].any()
    torch.testing.assert_close(
        ops.gaussian_attention(q, k, v, mask=mask), ops.gaussian_attention(q, k[:, :, :20], v[:, :, :20])
    )
