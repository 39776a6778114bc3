"""Forward-mode derivatives, `torch.func` and per-sample gradients of every op: against reverse mode and differences."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from softmaxfree import ops

pytestmark = pytest.mark.usefixtures("device")

SOLVER = ops.Newton(iters=40)  # converged, so that finite differences see the gradient that all solvers share


def cases() -> dict:
    v, landmarks = torch.randn(2, 2, 8, 3).double(), torch.randn(2, 2, 3, 4).double() * 0.6
    mask = torch.tensor([[True] * 3, [True, True, False]])
    return {
        "tied": lambda q: ops.nystrom_attention(q, q, v, landmarks, solver=SOLVER),
        "normalised": lambda q: ops.nystrom_attention(q, q, v, landmarks, solver=SOLVER, normalize=True),
        "keys": lambda q: ops.nystrom_attention(q, q.flip(2), v, landmarks, solver=SOLVER),
        "tokens as landmarks": lambda q: ops.nystrom_attention(q, q, v, q[:, :, :3], solver=SOLVER),
        "mask": lambda q: ops.nystrom_attention(q, q, v, q[:, :, :3], solver=SOLVER, landmark_mask=mask),
        "exact": lambda q: ops.gaussian_attention(q, q, v),
        "product": lambda q: ops.gaussian_product(q, landmarks, v[:, :, :3]),
        "gram": ops.gaussian_gram,
        "newton": lambda q: ops.pinv(ops.gaussian_gram(q), SOLVER),
        "cholesky": lambda q: ops.pinv(ops.gaussian_gram(q), ops.Cholesky()),
        "eigh": lambda q: ops.pinv(ops.gaussian_gram(q), ops.Eigh(ridge=0.01)),
    }


@pytest.fixture(params=list(cases()))
def function(request: pytest.FixtureRequest):
    return cases()[request.param]


@pytest.fixture
def q() -> Tensor:
    return torch.randn(2, 2, 8, 4).double() * 0.6


def loss_of(function):
    return lambda q: function(q).square().sum()


def test_forward_mode(function, q: Tensor):
    tangent, step = torch.randn_like(q), 1e-6
    differences = (function(q + step * tangent) - function(q - step * tangent)) / (2 * step)
    assert differences.norm() > 0.01
    torch.testing.assert_close(jvp(function, (q,), (tangent,))[1], differences, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(jacfwd(function)(q), jacrev(function)(q))
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(function(forward_ad.make_dual(q, tangent)))
    torch.testing.assert_close(out.tangent, differences, rtol=1e-6, atol=1e-6)


def test_gradients(function, q: Tensor):
    expected = torch.autograd.functional.jacobian(loss_of(function), q)
    torch.testing.assert_close(grad(loss_of(function))(q), expected)
    twice = torch.stack([q, 0.9 * q])
    each = torch.stack([torch.autograd.functional.jacobian(loss_of(function), z) for z in twice])
    torch.testing.assert_close(vmap(grad(loss_of(function)))(twice), each)
    torch.testing.assert_close(vmap(function, in_dims=3, out_dims=1)(twice.movedim(0, 3))[:, 1], function(twice[1]))
    rows = torch.autograd.functional.jacobian(function, q, vectorize=True)
    torch.testing.assert_close(rows, torch.autograd.functional.jacobian(function, q))


def test_second_derivatives(function, q: Tensor):
    expected = torch.autograd.functional.hessian(loss_of(function), q)
    torch.testing.assert_close(hessian(loss_of(function))(q), expected)
    torch.testing.assert_close(jacfwd(jacrev(loss_of(function)))(q), jacrev(jacrev(loss_of(function)))(q))


def test_curvature_of_equal_points():
    """Where rounding would make the squared distance negative, its second derivative is still that of a distance."""
    x = torch.full((1, 1, 3, 4), 0.1, dtype=torch.float64)
    b = torch.ones(1, 1, 3, 1, dtype=torch.float64)
    exact = hessian(lambda x: torch.exp(-0.5 * (x[:, :, :, None] - x[:, :, None]).square().sum(-1)).sum())(x)
    for function in (lambda x: ops.gaussian_product(x, x, b).sum(), lambda x: ops.gaussian_gram(x).sum()):
        torch.testing.assert_close(hessian(function)(x), exact)
        torch.testing.assert_close(torch.autograd.functional.hessian(function, x), exact)


def test_a_gradient_along_a_tangent(q: Tensor):
    """A tangent that arrives after the forward pass is not lost."""
    function, x = cases()["tied"], q.requires_grad_()
    out = function(x)
    cotangent, tangent = torch.randn_like(out), torch.randn_like(out)
    with forward_ad.dual_level():
        (result,) = torch.autograd.grad(out, x, forward_ad.make_dual(cotangent, tangent), retain_graph=True)
        result = forward_ad.unpack_dual(result).tangent
    torch.testing.assert_close(result, torch.autograd.grad(out, x, tangent)[0])


@pytest.mark.parametrize("transform", [jacfwd, jacrev, lambda f: vmap(grad(loss_of(f)))])
def test_compiles(transform):
    x = torch.randn(2, 2, 2, 8, 4).double() if transform not in (jacfwd, jacrev) else torch.randn(2, 2, 8, 4).double()
    whole = transform(cases()["tied"])
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), whole(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap maps over some of torch's own ops in a loop
@pytest.mark.parametrize(
    "kwargs",
    [{}, dict(normalize=True, last_stage="softmax_free", landmark_sampling="mean"), dict(landmark_sampling="random")],
    ids=str,
)
def test_whole_models(kwargs: dict):
    model = timm.create_model("soft_nano", num_classes=3, solver=SOLVER, **kwargs).double().eval()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    x, labels = torch.randn(3, 3, 48, 64).double(), torch.tensor([0, 1, 2])
    tangent, cotangent = torch.randn_like(x), torch.randn(3, 3).double()
    # products of the tangent with the gradient, from both sides
    forward = (jvp(model, (x,), (tangent,))[1] * cotangent).sum()
    backward = (torch.autograd.functional.vjp(model, x, cotangent)[1] * tangent).sum()
    torch.testing.assert_close(forward, backward, rtol=1e-8, atol=0)

    def loss(weights: dict, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, labels)
    for i in range(3):
        expected = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), labels[i : i + 1]), model.parameters())
        for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(each[name][i], gradient, rtol=1e-6, atol=1e-9)


def test_forward_mode_of_forward_mode_is_refused_where_it_would_be_wrong():
    gram = 2 * torch.eye(2, dtype=torch.float64)[None, None]
    one = torch.tensor(1.0, dtype=torch.float64)

    def total(a):
        return ops.pinv(a * gram, ops.Cholesky(ridge=1e-5)).sum()

    with pytest.raises(NotImplementedError, match=r"take one of them in reverse mode"):
        torch.func.jacfwd(torch.func.jacfwd(total))(one)
    torch.testing.assert_close(torch.func.hessian(total)(one), torch.func.jacrev(torch.func.jacrev(total))(one))
