"""The Triton kernels beyond the op's contract: what they refuse, and that they compile for real GPUs."""

import os
import subprocess
import sys

import pytest
import torch

from softmaxfree.ops import Newton, dispatch, gaussian_gram, gaussian_product
from softmaxfree.ops.gaussian import fused
from softmaxfree.ops.gaussian import naive as gaussian_naive
from softmaxfree.ops.pinv import naive
from softmaxfree.ops.pinv.newton import fused as fused_newton
from softmaxfree.ops.pinv.newton import steps
from tests.helpers import assert_no_worse_than
from tests.ops import contract

_COMPILE = """
import warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from softmaxfree.ops.gaussian import kernels as gaussian
from softmaxfree.ops.pinv.newton import kernels as newton

def build(kernel, types, constants, **options):
    names = kernel.arg_names
    signature = {n: types.get(n, "constexpr" if n.isupper() else "i32") for n in names}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).metadata.shared

arrays = ("points", "values", "other_points", "other_values", "centre", "product", "gradient")
strides = ("point_strides", "value_strides", "other_point_strides", "other_value_strides")
types = {n: ("i64",) * 4 for n in strides}
for dtype, width, product, gradient in (("fp32", 128, 1, 1), ("fp32", 32, 0, 1), ("bf16", 32, 1, 0)):
    types |= {n: "*" + dtype for n in arrays} | {"centre": "*fp32"}
    blocks = dict(BLOCK_R=32, BLOCK_C=32, BLOCK_D=width, BLOCK_E=width)
    constants = dict(PRODUCT=bool(product), GRADIENT=bool(gradient), NARROW=dtype != "fp32") | blocks
    print(build(gaussian._gaussian_rows_kernel, types, constants, num_warps=4 if width <= 64 else 8, num_stages=2))
types = {"matrices": "*fp32", "alphas": "*fp32", "inverses": "*fp32"}
print(build(newton._newton_kernel, types, {"BLOCK": 64}, num_warps=8))
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there():
    """To machine code, within the 99 KiB of shared memory that every GPU since Ampere gives a block."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", _COMPILE], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    shared = [int(line) for line in run.stdout.split()]
    assert len(shared) == 4
    assert max(shared) <= 99 * 1024


@pytest.mark.parametrize("num_landmarks", [1, 9, 49, 64])
def test_newton_under_the_interpreter(interpreter, num_landmarks: int):
    a = gaussian_gram(torch.randn(3, 2, num_landmarks, 8) * 0.5)
    solver, p = Newton(), a + 0.01 * torch.eye(num_landmarks)
    alpha = solver.alpha(a)
    exact = naive.newton_filter(a, alpha, solver.iters, solver.ridge)
    assert_no_worse_than(fused_newton.run(p, alpha, 20), steps.run(p, alpha, 20), exact)


def test_newton_under_the_interpreter_with_one_start_an_image(interpreter):
    a = gaussian_gram(torch.randn(2, 3, 9, 8) * 0.5)
    alpha = Newton(ridge=0.0, start="halving").alpha(a)
    torch.testing.assert_close(fused_newton.run(a, alpha, 8), steps.run(a, alpha, 8))


def test_newton_of_nothing(interpreter):
    assert fused_newton.run(torch.empty(0, 2, 9, 9), torch.empty(0, 2, 1, 1), 20).shape == (0, 2, 9, 9)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (_meta(1, 2, 9, 129), "widths up to 128, got 129"),
        (_meta(2, 9, 32), r"needs \(B, H, N, D\), got 3 dimensions"),
        (_meta(1, 2, 9, 32, dtype=torch.float64), "computes in float32, got torch.float64"),
        (_meta(2, 2, 2**30, 1), "numbers its blocks up to 2147483647"),
        (torch.empty(1, 2, 9, 32), "needs a GPU that Triton compiles for, got cpu"),
    ],
)
def test_refuses_with_a_reason(points: torch.Tensor, reason: str, monkeypatch):
    monkeypatch.setenv("SOFTMAXFREE_GAUSSIAN", "fused")
    with pytest.raises(ValueError, match=reason):
        dispatch.choose("gaussian", points, points, points)


def test_newton_refuses_with_a_reason():
    assert "a block holds up to 64 landmarks, got 65" in fused_newton.not_supported_reasons(_meta(1, 1, 65, 65))
    assert "computes in float32, got torch.float64" in fused_newton.not_supported_reasons(
        _meta(1, 1, 9, 9, dtype=torch.float64)
    )


@pytest.mark.parametrize(("n", "m"), [(9, 600), (600, 9)])
def test_sums_of_several_programs(interpreter, monkeypatch, n: int, m: int):
    """On the landmark side of many tokens, each program sums a part of them."""
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "gaussian", {"fused": fused})
    monkeypatch.setattr(fused, "not_supported_reasons", lambda x, y, b: [])
    inputs = [torch.randn(2, 1, rows, 8) * 0.5 for rows in (n, m, m)]

    def definition(x: torch.Tensor, y: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return gaussian_naive.forward(x, y, b, b.dtype)

    contract.check_values_and_gradients(gaussian_product, definition, inputs, torch.randn(2, 1, n, 8))
    # the parts, and so the roundings, are those of an image alone
    x, y, b = inputs
    both = fused.forward(x, y, b, torch.float32)
    assert torch.equal(both[:1], fused.forward(x[:1], y[:1], b[:1], torch.float32))
