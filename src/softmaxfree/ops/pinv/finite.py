"""Matrices that are not finite, kept out of factorisations, where one fails all."""

import torch
from torch import Tensor


def finite_matrices(p: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `p (..., M, M)` with identities for those that are not finite, and which are, `(..., 1, 1)`."""
    finite = p.isfinite().all(-1).all(-1)[..., None, None]
    return torch.where(finite, p, torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)), finite
