"""Float64 oracles for the solvers, straight from eigenvalues. For tests and comparison; slow."""

import torch
from torch import Tensor


def spectral_map(gram: Tensor, function) -> Tensor:
    """Applies `function` to the eigenvalues of symmetric `gram (..., M, M)`, in float64."""
    eigenvalues, vectors = torch.linalg.eigh(gram.double())
    return (vectors * function(eigenvalues).unsqueeze(-2)) @ vectors.mT


def ridge_inverse(gram: Tensor, ridge: float) -> Tensor:
    """Returns `(A + ridge I)^-1` in float64."""
    return spectral_map(gram, lambda w: 1 / (w + ridge))


def newton_filter(gram: Tensor, alpha: Tensor, iters: int, ridge: float) -> Tensor:
    """Returns what `iters` Newton steps from `alpha P` give in exact arithmetic, `P = A + ridge I`, in float64.

    Each step squares `1 - w v`, so an eigenvalue `w` of `P` becomes `(1 - (1 - alpha w^2)^(2^iters)) / w`.

    Args:
        gram: `A (B, H, M, M)`, symmetric.
        alpha: start `(B, H, 1, 1)`.
        iters: number of Newton steps.
        ridge: added to the diagonal.

    Returns:
        `(B, H, M, M)`.
    """

    def g(w: Tensor) -> Tensor:
        w = w + ridge
        return (1 - (1 - alpha.double().squeeze(-1) * w * w) ** (2.0**iters)) / w

    return spectral_map(gram, g)
