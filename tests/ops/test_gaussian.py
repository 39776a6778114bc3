"""The contract of the Gaussian kernel product, over every implementation."""

import itertools

import pytest
import torch
from torch import Tensor, library

from softmaxfree.ops import gaussian_gram, gaussian_product
from softmaxfree.ops.gaussian import naive
from tests.helpers import LANDMARK_COUNTS, TOKEN_COUNTS
from tests.ops import contract
from tests.ops.contract import affordable, points


def definition(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    return naive.forward(x, y, b, b.dtype)


def case(n: int, m: int, batch=2, heads=1, d=32, e=24, dtype=torch.float32) -> tuple[list[Tensor], Tensor]:
    x, y, b = points(batch, heads, n, d), points(batch, heads, m, d), torch.randn(batch, heads, m, e)
    return [z.to(dtype) for z in (x, y, b)], torch.randn(batch, heads, n, e)


BOTH_SIDES = [(n, m) for n, m in itertools.product(TOKEN_COUNTS, LANDMARK_COUNTS)]
BOTH_SIDES += [(m, n) for n, m in BOTH_SIDES]


@pytest.mark.parametrize(("n", "m"), BOTH_SIDES)
def test_values_and_gradients(implementation: str, n: int, m: int):
    affordable(implementation, n, m)
    # a point's |p|^2 errs alike in its whole row: with one point a side, many images make the error no matter of luck
    inputs, grad = case(n, m, batch=16 if min(n, m) == 1 else 2)
    contract.check_values_and_gradients(gaussian_product, definition, inputs, grad)


@pytest.mark.parametrize(("d", "e"), [(1, 1), (17, 40), (128, 128)])
def test_widths(implementation: str, d: int, e: int):
    inputs, grad = case(63, 9, heads=3, d=d, e=e)
    contract.check_values_and_gradients(gaussian_product, definition, inputs, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m"), [(197, 49), (49, 197)])
def test_half(implementation: str, dtype: torch.dtype, n: int, m: int):
    (x, y, b), grad = case(n, m, dtype=dtype)
    contract.check_values_and_gradients(gaussian_product, definition, [x, y, b], grad)
    contract.check_values_and_gradients(gaussian_product, definition, [x, y, b.float()], grad)


@pytest.mark.parametrize(("n", "m"), [(7, 3), (3, 7)])
def test_differences(implementation: str, n: int, m: int):
    if implementation == "fused":
        pytest.skip("float64 is left to the others")
    contract.check_differences(gaussian_product, case(n, m, d=3, e=2)[0])


@pytest.mark.parametrize(("n", "m"), [(197, 49), (49, 197), (3136, 49)])
def test_strided(implementation: str, n: int, m: int):
    """Heads beside tokens in memory, as a projection leaves them, and a gradient of one number everywhere."""
    affordable(implementation, n, m)
    inputs, _ = case(n, m, heads=3)
    strided = [z.transpose(1, 2).contiguous().transpose(1, 2) for z in inputs]
    grad = torch.ones(1).expand(2, 3, n, 24)
    results = contract.value_and_gradients(gaussian_product, strided, grad)
    for a, b in zip(results, contract.value_and_gradients(gaussian_product, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("n", "m"), [(50, 9), (9, 50), (3136, 49)])
def test_batch_independence(implementation: str, n: int, m: int):
    affordable(implementation, n, m)
    contract.check_batch_independence(gaussian_product, *case(n, m, batch=3))


@pytest.mark.parametrize(("batch", "heads", "n", "m"), [(0, 2, 50, 9), (2, 0, 50, 9), (2, 1, 0, 9), (2, 1, 50, 0)])
def test_empty(implementation: str, batch: int, heads: int, n: int, m: int):
    inputs, grad = case(n, m, batch, heads)
    for result, z in zip(contract.value_and_gradients(gaussian_product, inputs, grad), [grad, *inputs], strict=True):
        assert result.shape == z.shape
        assert (result == 0).all()


def test_compiles(implementation: str):
    contract.check_compiles(gaussian_product, *case(50, 9, heads=2))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks itself
def test_opcheck(implementation: str):
    x, y, b = (z.requires_grad_() for z in case(10, 3, heads=2)[0])
    library.opcheck(torch.ops.softmaxfree.gaussian_product, (x, y, b, torch.float32))


def test_far_points(implementation: str):
    """At 10,000 times a network's scale only equal points see each other."""
    x = points(1, 2, 50, 32, scale=4200)
    b = torch.randn(1, 2, 50, 24)
    out = gaussian_product(x, x.roll(1, -2), b.roll(1, -2))
    assert torch.isfinite(out).all()
    assert out.norm() <= 1.001 * b.norm()
    assert (gaussian_product(x, -x, b) == 0).all()


def test_equal_points(implementation: str):
    """Rounding cannot lift the kernel of equal points above 1, as it would without a clamp."""
    x = (torch.randn(32) * 30).expand(1, 1, 50, 32)
    out = gaussian_product(x, x, torch.ones(1, 1, 50, 1))
    assert (out <= 50).all()
    assert (out >= 49.9).all()


def test_nan_stays_in_its_row_and_head(implementation: str):
    (x, y, b), _ = case(50, 9, heads=2)
    x[0, 0, 3] = torch.nan
    y[1, 1, 2] = torch.nan
    out = gaussian_product(x, y, b).isnan().all(-1)
    expected = torch.zeros_like(out)
    expected[0, 0, 3] = expected[1, 1] = True
    assert torch.equal(out, expected)


def test_result_dtype(implementation: str):
    (x, y, b), _ = case(50, 9, dtype=torch.bfloat16)
    full = gaussian_product(x, y, b, out_dtype=torch.float32)
    assert full.dtype == torch.float32
    assert torch.equal(full.bfloat16(), gaussian_product(x, y, b))


def test_autocast_changes_nothing(implementation: str):
    inputs, _ = case(50, 9)
    expected = gaussian_product(*inputs)
    with torch.autocast(inputs[0].device.type, torch.bfloat16):
        assert torch.equal(gaussian_product(*inputs), expected)


def test_gram_is_the_kernel_of_a_set_with_itself():
    x = points(2, 2, 49, 32)
    gram = gaussian_gram(x)
    assert (gram.diagonal(dim1=-2, dim2=-1) == 1).all()
    assert torch.equal(gram, gram.mT)
    torch.testing.assert_close(gram.double(), naive.kernel(x.double(), x.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, b: (x[:1], y, b), "x, y, b must be"),
        (lambda x, y, b: (x[..., :5], y, b), "x, y, b must be"),
        (lambda x, y, b: (x, y, b[..., :5, :]), "b must have one row for each of y's 9 points, got 5"),
        (lambda x, y, b: (x, y.double(), b), "must share a dtype"),
        (lambda x, y, b: (x, y, b.half()), "must share a dtype"),
        (lambda x, y, b: (x.double(), y.double(), b), "must share a dtype"),
        (lambda x, y, b: (x, y.to("meta"), b), "must be on one device"),
    ],
)
def test_bad_input(change, message: str):
    with pytest.raises(ValueError, match=message):
        gaussian_product(*change(*case(50, 9)[0]))
