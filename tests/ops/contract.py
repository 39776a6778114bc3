"""What every implementation of an op must do, whatever it computes. An op takes tensors and returns one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers import assert_no_worse_than

Op = Callable[..., Tensor]


def affordable(implementation: str, n: int, m: int) -> None:
    """Skips sizes that teach nothing new about the Triton kernel and take the interpreter long."""
    if implementation == "fused" and (max(n, m) > 200 or (max(n, m) > 100 and min(n, m) == 1)):
        pytest.skip("slow under the interpreter")


def points(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 0.42) -> Tensor:
    """Returns what a network's q / D^(1/4) looks like for D = 32."""
    return (torch.randn(shape) * scale).to(dtype)


def value_and_gradients(op: Op, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Returns the value and the gradient of every input."""
    inputs = [z.detach().requires_grad_() for z in inputs]
    out = op(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def check_values_and_gradients(op: Op, definition: Op, inputs: list[Tensor], grad: Tensor) -> None:
    """Value and gradients are as good as the definition's in the same dtype, differentiated by torch."""
    results = value_and_gradients(op, inputs, grad)
    in_dtype = value_and_gradients(definition, inputs, grad)
    exact = value_and_gradients(definition, [z.double() for z in inputs], grad)
    names = ["out", *(f"gradient {i}" for i in range(len(inputs)))]
    for name, result, same, oracle in zip(names, results, in_dtype, exact, strict=True):
        assert_no_worse_than(result, same, oracle, name=name)


def check_differences(op: Op, inputs: list[Tensor]) -> None:
    """First gradients, and second ones, agree with finite differences in float64."""
    inputs = [z.double().detach().requires_grad_() for z in inputs]
    assert torch.autograd.gradcheck(op, inputs)
    assert torch.autograd.gradgradcheck(op, inputs)


def check_batch_independence(op: Op, inputs: list[Tensor], grad: Tensor) -> None:
    """The first image's results do not change by a bit when the others do, even to NaN."""
    before = value_and_gradients(op, inputs, grad)
    others = [z.clone() for z in inputs]
    for z in others:
        z[1:] = torch.nan
    for a, b in zip(before, value_and_gradients(op, others, grad), strict=True):
        assert torch.equal(a[0], b[0])


def check_compiles(op: Op, inputs: list[Tensor], grad: Tensor) -> None:
    """The op is one graph for torch.compile, forward and backward, and gives the same."""
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for a, b in zip(value_and_gradients(op, inputs, grad), value_and_gradients(compiled, inputs, grad), strict=True):
        assert torch.equal(a, b)
