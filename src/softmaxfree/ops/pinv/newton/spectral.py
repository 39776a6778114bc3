"""Newton's steps on the eigenvalues alone: `V` keeps the eigenvectors of `P`, so each goes its own way."""

import torch
from torch import Tensor

from softmaxfree.ops.pinv.finite import finite_matrices

# matrices below are no faster to factorise than to step through
_MIN_SIZE = 65


def run(p: Tensor, alpha: Tensor, iters: int) -> Tensor:
    """Returns `V` after `iters` steps `V <- 2 V - V P V` from `alpha P`, `(B, H, M, M)`."""
    p, finite = finite_matrices(p)
    w, vectors = torch.linalg.eigh(p.double())  # in float32 the small eigenvalues would lose a digit to the steps
    v = alpha.squeeze(-1) * w
    for _ in range(iters):
        v = v * (2 - w * v)
    vectors = vectors.to(p.dtype)
    inverse = (vectors * v.to(p.dtype).unsqueeze(-2)) @ vectors.mT
    return torch.where(finite, inverse, torch.nan)


def not_supported_reasons(p: Tensor) -> list[str]:
    """Returns why eigenvalues are no good for these matrices; empty when they are."""
    reasons = []
    if p.device.type != "cpu":
        reasons.append(f"eigenvalues are fast on a CPU only, got {p.device.type}")
    if p.dtype != torch.float32:
        reasons.append(f"double the precision of {p.dtype} is not at hand")
    if p.shape[-1] < _MIN_SIZE:
        reasons.append(f"stepping is as fast below {_MIN_SIZE} landmarks, got {p.shape[-1]}")
    return reasons
