"""Every solver: value against its float64 oracle, the one gradient, second derivatives, hard matrices."""

import json

import pytest
import torch

from softmaxfree import ops
from softmaxfree.ops.pinv import naive, residual
from tests.helpers import assert_no_worse_than

pytestmark = pytest.mark.usefixtures("device")

SOLVERS = [
    ops.Newton(iters=30),
    ops.Newton(iters=40, ridge=0.0, start="halving"),
    ops.Cholesky(),
    ops.Eigh(ridge=0.01),
    ops.Eigh(),
]


def gram(*shape: int, spread: float = 1.0, dtype=torch.float64) -> torch.Tensor:
    """Kernel matrices of random landmarks; a larger spread makes them better conditioned."""
    return ops.gaussian_gram(torch.randn(*shape, 8, dtype=dtype) * spread)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_converges_to_the_ridge_inverse(solver):
    a = gram(2, 3, 9)
    torch.testing.assert_close(ops.pinv(a, solver), naive.ridge_inverse(a, solver.ridge), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_landmarks", [1, 49, 256])
def test_an_exported_program_finds_the_inverse_of_cholesky(num_landmarks):
    class Inverse(torch.nn.Module):
        def forward(self, a):
            return ops.pinv(a, ops.Cholesky())

    a = gram(1, 2, num_landmarks, spread=0.5)
    program = torch.export.export(Inverse(), (a,)).module()
    torch.testing.assert_close(program(a), naive.ridge_inverse(a, 0.01), rtol=1e-6, atol=1e-6)
    exact = naive.ridge_inverse(a.float(), 0.01)
    program = torch.export.export(Inverse(), (a.float(),)).module()
    assert (program(a.float()) - exact).norm() <= max(5 * (Inverse()(a.float()) - exact).norm(), 1e-5 * exact.norm())


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_gradient_and_second_derivative(solver):
    a = gram(1, 2, 5).requires_grad_()
    # Eigh and Cholesky read one triangle: perturb symmetrically
    assert torch.autograd.gradcheck(lambda x: ops.pinv((x + x.mT) / 2, solver), a)
    assert torch.autograd.gradgradcheck(lambda x: ops.pinv((x + x.mT) / 2, solver), a)


@pytest.mark.parametrize("num_landmarks", [1, 9, 49])
def test_twenty_newton_steps_are_the_documented_filter(num_landmarks):
    a, solver = gram(2, 3, num_landmarks, spread=0.5), ops.Newton()
    exact = naive.newton_filter(a, solver.alpha(a), solver.iters, solver.ridge)
    torch.testing.assert_close(ops.pinv(a, solver), exact, rtol=1e-8, atol=1e-8)


def test_newton_is_as_accurate_as_its_steps_in_float32():
    a = gram(2, 4, 49, spread=0.5)
    solver, a32 = ops.Newton(), a.float()
    p = a32 + 0.01 * torch.eye(49)
    v = (1.8 / a32.sum(-1).amax(-1).square())[..., None, None] * p
    for _ in range(20):
        v = 2 * v - v @ p @ v
    exact = naive.newton_filter(a32.double(), solver.alpha(a32.double()), 20, 0.01)
    assert_no_worse_than(ops.pinv(a32, solver), v, exact)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_images_do_not_see_each_other(solver):
    a, b = gram(1, 2, 9), gram(1, 2, 9, spread=0.1)
    both = ops.pinv(torch.cat((a, b)), solver)
    torch.testing.assert_close(both, torch.cat((ops.pinv(a, solver), ops.pinv(b, solver))), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [ops.Newton(), ops.Newton(ridge=0.0, start="halving"), ops.Cholesky(), ops.Eigh()])
@pytest.mark.parametrize("case", ["repeated", "far", "one", "empty"])
def test_degenerate_matrices_stay_finite(solver, case):
    landmarks = {
        "repeated": torch.ones(2, 2, 9, 8),
        "far": torch.randn(2, 2, 9, 8) * 1e4,
        "one": torch.randn(2, 2, 1, 8),
        "empty": torch.randn(0, 2, 9, 8),
    }[case].requires_grad_()
    out = ops.pinv(ops.gaussian_gram(landmarks), solver)
    out.sum().backward()
    assert out.isfinite().all()
    assert landmarks.grad is not None
    assert landmarks.grad.isfinite().all()


def test_residual_is_small_for_an_inverse_and_one_for_nothing():
    a = gram(2, 3, 9)
    assert residual(a, ops.pinv(a, ops.Eigh())).max() < 1e-9
    torch.testing.assert_close(residual(a, torch.zeros_like(a)), torch.ones(2, 3, dtype=a.dtype))


@pytest.mark.parametrize("solver", [*SOLVERS, ops.Newton(7, 0.1)], ids=repr)
def test_solvers_survive_json(solver):
    assert ops.as_solver(json.loads(json.dumps(solver.to_dict()))) == solver
    assert ops.as_solver(solver.json) == solver
    assert ops.as_solver(solver) is solver


def test_a_bare_name_is_a_solver():
    assert ops.as_solver("newton") == ops.Newton(iters=20, ridge=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ops.Newton(iters=20.5), "iters must be a whole number, 1 or more, got 20.5"),
        (lambda: ops.Newton(iters=True), "iters must be a whole number, 1 or more, got True"),
        (lambda: ops.Newton(ridge=float("nan")), "ridge must be 0 or more, got nan"),
        (lambda: ops.Newton(ridge="0.1"), "ridge must be 0 or more, got '0.1'"),
        (lambda: ops.Newton(ridge=True), "ridge must be 0 or more, got True"),
        (lambda: ops.Newton(start=["rowsum"]), "'rowsum' or 'halving'"),
        (lambda: ops.Cholesky(ridge=float("inf")), "ridge must be 1e-05 or more, got inf"),
        (lambda: ops.Eigh(ridge=None), "ridge must be 0 or more, got None"),
        (lambda: ops.Eigh(rcond=False), "rcond must be in"),
        (lambda: ops.as_solver('{"name": "newton", "iters": 20.5}'), "iters must be a whole number"),
        (lambda: ops.as_solver('{"name": "newton"'), "solver must be JSON or one of newton"),
        (lambda: ops.as_solver(7), "solver must be a solver"),
        (lambda: ops.as_solver({"name": ["newton"]}), "is not one of newton, cholesky, eigh"),
        (lambda: ops.Newton(iters=0), "iters must be 1 or more, got 0"),
        (lambda: ops.Newton(ridge=-1.0), "ridge must be 0 or more"),
        (lambda: ops.Newton(start="middle"), "'rowsum' or 'halving'"),
        (lambda: ops.Cholesky(ridge=0.0), "ridge must be 1e-05 or more"),
        (lambda: ops.Eigh(rcond=1.0), "rcond"),
        (lambda: ops.as_solver("svd"), "'svd' is not one of newton, cholesky, eigh"),
        (lambda: ops.as_solver({"name": "newton", "steps": 3}), "takes .*iters.*got .*steps"),
        (lambda: ops.pinv(torch.zeros(1, 1, 3, 4)), r"gram must be \(B, H, M, M\), got \(1, 1, 3, 4\)"),
        (lambda: ops.pinv(torch.eye(3)), r"gram must be \(B, H, M, M\), got \(3, 3\)"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [5, 70])
def test_a_failed_inverse_is_nan_and_leaves_the_others_alone(m, dtype):
    a = gram(4, 1, m, dtype=dtype)
    a[1, 0, :2, :2] = torch.tensor([[1.0, 3.0], [3.0, 1.0]])  # indefinite
    a[2, 0, 1, 1], a[3, 0, 0, 0] = torch.nan, torch.inf
    for solver in (ops.Cholesky(), ops.Eigh(ridge=0.01), ops.Newton()):
        out = ops.pinv(a, solver)
        torch.testing.assert_close(out[:1], ops.pinv(a[:1], solver), rtol=1e-4, atol=1e-4)
        assert out[0].isfinite().all()
        assert out[2:].isnan().all()
    assert ops.pinv(a, ops.Cholesky())[1].isnan().all()


def test_newton_that_goes_astray_is_nan():
    far, near = torch.eye(9).expand(1, 1, 9, 9), torch.ones(1, 1, 9, 9)  # a ridge of 0.5 is too much for the first
    out = ops.pinv(torch.cat((far, near)), ops.Newton(iters=7, ridge=0.5))
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


def test_a_head_of_nan_leaves_the_others_of_its_image_alone():
    good = torch.rand(3, 3)
    good = good @ good.mT + torch.eye(3)
    halving = ops.Newton(ridge=0.0, start="halving")
    both = ops.pinv(torch.stack([good, torch.full((3, 3), torch.nan)])[None], halving)
    assert torch.equal(both[:, :1], ops.pinv(good[None, None], halving))
    assert both[:, 1].isnan().all()


@pytest.mark.parametrize("values", [(1.0, -1.0, 2.0), (-1.0, -1.0, -1.0)])
def test_no_inverse_of_what_is_no_kernel_matrix(values):
    assert ops.pinv(torch.diag(torch.tensor(values))[None, None], ops.Eigh()).isnan().all()
