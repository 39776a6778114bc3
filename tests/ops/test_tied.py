"""The contract of the product `K z K^T v` of self-attention, over every implementation of the kernel."""

import pytest
import torch
from torch import Tensor, library

from softmaxfree.ops import gaussian
from softmaxfree.ops.gaussian import fused, naive
from tests.ops import contract
from tests.ops.contract import affordable, points


def definition(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> Tensor:
    k = naive.kernel(x, y)
    return (k @ (z @ (k.mT @ v.to(z.dtype)))).to(v.dtype)


def case(n: int, m: int, batch=2, heads=1, d=32, e=24, dtype=torch.float32) -> tuple[list[Tensor], Tensor]:
    x, y, v = points(batch, heads, n, d), points(batch, heads, m, d), torch.randn(batch, heads, n, e)
    z = torch.randn(batch, heads, m, m) / m
    return [x.to(dtype), y.to(dtype), z, v.to(dtype)], torch.randn(batch, heads, n, e)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (49, 49), (50, 9), (9, 50), (197, 49), (3136, 49)])
def test_values_and_gradients(implementation: str, n: int, m: int):
    affordable(implementation, n, m)
    inputs, grad = case(n, m, batch=16 if min(n, m) == 1 else 2)
    contract.check_values_and_gradients(gaussian.tied_product, definition, inputs, grad)


@pytest.mark.parametrize(("d", "e"), [(1, 1), (17, 40), (128, 65), (128, 128)])
def test_widths(implementation: str, d: int, e: int):
    contract.check_values_and_gradients(gaussian.tied_product, definition, *case(63, 9, heads=3, d=d, e=e))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(implementation: str, dtype: torch.dtype):
    contract.check_values_and_gradients(gaussian.tied_product, definition, *case(197, 49, dtype=dtype))


def test_differences(implementation: str):
    if implementation == "fused":
        pytest.skip("float64 is left to the others")
    contract.check_differences(gaussian.tied_product, case(7, 3, d=3, e=2)[0])


def test_strided(implementation: str):
    """Heads beside tokens in memory, as a projection leaves them, and a gradient of one number everywhere."""
    inputs, _ = case(197, 49, heads=3)
    strided = [z.transpose(1, 2).contiguous().transpose(1, 2) for z in inputs]
    grad = torch.ones(1).expand(2, 3, 197, 24)
    results = contract.value_and_gradients(gaussian.tied_product, strided, grad)
    for a, b in zip(results, contract.value_and_gradients(gaussian.tied_product, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_batch_independence(implementation: str):
    contract.check_batch_independence(gaussian.tied_product, *case(50, 9, batch=3))


@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (2, 0)])
def test_empty(implementation: str, batch: int, heads: int):
    inputs, grad = case(50, 9, batch, heads)
    results = contract.value_and_gradients(gaussian.tied_product, inputs, grad)
    for result, z in zip(results, [grad, *inputs], strict=True):
        assert result.shape == z.shape


def test_compiles(implementation: str):
    contract.check_compiles(gaussian.tied_product, *case(50, 9, heads=2))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks itself
def test_opcheck(implementation: str):
    inputs = tuple(z.requires_grad_() for z in case(10, 3, heads=2)[0])
    library.opcheck(torch.ops.softmaxfree.gaussian_tied_product, inputs)


def test_sums_of_several_programs(interpreter):
    """On the landmark side of many tokens, each program sums a part of them."""
    x, y, v, grad = (torch.randn(2, 1, rows, 8) * 0.5 for rows in (600, 9, 600, 600))
    z, kv = torch.randn(2, 1, 9, 9), torch.randn(2, 1, 9, 8)
    expected = naive.tied_backward(*(t.double() for t in (x, y, z, v, kv, grad)))
    for result, exact in zip(fused.tied_backward(x, y, z, v, kv, grad), expected, strict=True):
        torch.testing.assert_close(result, exact.float(), rtol=1e-4, atol=1e-4)
