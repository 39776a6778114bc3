"""All ways to run Newton's steps give one filter, as exactly as the steps do, for any number of landmarks."""

import pytest
import torch
from torch import Tensor

from softmaxfree import ops
from softmaxfree.ops import dispatch
from softmaxfree.ops.pinv import naive
from softmaxfree.ops.pinv.newton import spectral, steps
from tests.helpers import assert_no_worse_than

SOLVERS = [ops.Newton(), ops.Newton(ridge=0.0, start="halving")]


def gram(num_landmarks: int, spread: float, batch: int = 2) -> Tensor:
    """Kernel matrices of a smooth random map's points; a smaller spread makes them closer to singular."""
    field = torch.randn(batch, 8, 5)
    points = torch.nn.functional.interpolate(field, num_landmarks, mode="linear", align_corners=True)
    return ops.gaussian_gram(points.mT[:, None] * spread)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.start)
@pytest.mark.parametrize("num_landmarks", [9, 49, 65, 100, 196, pytest.param(784, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spread", [0.05, 0.3, 2.0])
def test_error_is_at_most_twice_that_of_the_steps(solver, num_landmarks: int, spread: float):
    a = gram(num_landmarks, spread)
    alpha = solver.alpha(a)
    exact = naive.newton_filter(a, alpha, solver.iters, solver.ridge)
    stepped = steps.run(a + solver.ridge * torch.eye(num_landmarks), alpha, solver.iters)
    assert_no_worse_than(ops.pinv(a, solver), stepped, exact)


@pytest.mark.parametrize(("num_landmarks", "way"), [(64, steps), (65, spectral), (784, spectral)])
def test_large_matrices_are_factorised(num_landmarks: int, way):
    assert dispatch.choose("newton", torch.eye(num_landmarks)[None, None]) is way


def test_float64_keeps_its_digits():
    assert dispatch.choose("newton", torch.eye(196, dtype=torch.float64)[None, None]) is steps


def test_export_takes_no_factorisation():
    class Inverse(torch.nn.Module):
        def forward(self, a: Tensor) -> Tensor:
            return ops.pinv(a)

    a = gram(100, 0.3)
    program = torch.export.export(Inverse(), (a,))
    assert "eigh" not in str(program.graph)
    torch.testing.assert_close(program.module()(a), ops.pinv(a), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_landmarks", [49, 100])
def test_batch_independence(num_landmarks: int):
    a = gram(num_landmarks, 0.3, batch=3)
    expected = ops.pinv(a)
    a[1:] = torch.nan
    out = ops.pinv(a)
    assert torch.equal(out[0], expected[0])
    assert out[1:].isnan().all()


@pytest.mark.parametrize("num_landmarks", [49, 100])
def test_singular_matrices_stay_finite(num_landmarks: int):
    """All landmarks alike: the matrix of ones has the eigenvalue 0 many times."""
    for solver in SOLVERS:
        out = ops.pinv(torch.ones(1, 2, num_landmarks, num_landmarks), solver)
        assert torch.isfinite(out).all()


def test_gradient_of_a_large_matrix_is_the_implicit_one():
    a = gram(100, 0.3).requires_grad_()
    y = ops.pinv(a)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, a, g)[0], -(y.mT @ g @ y.mT).detach())
