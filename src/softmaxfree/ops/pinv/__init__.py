"""Regularised inverse of the landmark kernel matrix, with one closed-form gradient for every solver."""

import torch
from jaxtyping import Float
from torch import Tensor

from softmaxfree.ops import transforms
from softmaxfree.ops.pinv.implicit import Pinv
from softmaxfree.ops.pinv.solvers import (
    AbstractPinvSolver,
    Cholesky,
    Eigh,
    Newton,
    as_solver,
    register_solver,
    solver_from_json,
)
from softmaxfree.ops.precision import full_precision, widen

__all__ = ["AbstractPinvSolver", "Cholesky", "Eigh", "Newton", "as_solver", "pinv", "register_solver", "residual"]

_DEFAULT = Newton()


def pinv(gram: Float[Tensor, "B H M M"], solver: AbstractPinvSolver | str = _DEFAULT) -> Float[Tensor, "B H M M"]:
    """Inverts symmetric kernel matrices, each image on its own.

    Computed in float32 (float64 for float64), also under autocast. The gradient is `-Y^T G Y^T` (SOFT++, theorem on
    the derivative of the inverse), exact for a converged solver, and differentiable again.

    Args:
        gram: symmetric positive matrices `(B, H, M, M)`.
        solver: how, and with which regularisation; also a name, see `as_solver`.

    Returns:
        `(B, H, M, M)`, float32 or float64.

    Raises:
        ValueError: `gram` is of another shape.
    """
    if gram.ndim != 4 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"gram must be (B, H, M, M), got {tuple(gram.shape)}")
    return inverse(widen(gram), as_solver(solver).json)


def inverse(gram: Tensor, solver: str) -> Tensor:
    """`pinv` for a solver in JSON, without checks."""
    if torch.compiler.is_exporting():
        return solver_from_json(solver).compute(gram)
    if transforms.at_work():
        if not torch.compiler.is_compiling() and transforms.forward_of_forward():
            raise NotImplementedError(
                "the inverse has no forward-mode derivative of a forward-mode derivative; take one of them in reverse "
                "mode, as torch.func.hessian does"
            )
        return Pinv.apply(gram, solver)
    return torch.ops.softmaxfree.pinv(gram, solver)


def residual(gram: Float[Tensor, "B H M M"], inverse: Float[Tensor, "B H M M"]) -> Float[Tensor, "B H"]:
    """Returns `|A Y A - A| / |A|` (Frobenius), `(B, H)`: 0 for a pseudo-inverse (SOFT, figure 4b)."""
    a, y = widen(gram), widen(inverse)
    with full_precision(a):
        return (a @ y @ a - a).flatten(-2).norm(dim=-1) / a.flatten(-2).norm(dim=-1)
