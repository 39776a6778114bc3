"""Newton's steps in Triton: one program takes one matrix through all of them."""

import torch
from torch import Tensor

from softmaxfree.ops import gpu

_MAX_SIZE = 64


def run(p: Tensor, alpha: Tensor, iters: int) -> Tensor:
    """Returns `V` after `iters` steps `V <- 2 V - V P V` from `alpha P`, `(B, H, M, M)`."""
    from softmaxfree.ops.pinv.newton import kernels

    p = p.contiguous()
    alphas = alpha.expand(*p.shape[:-2], 1, 1).contiguous()
    v = torch.empty_like(p)
    size = p.shape[-1]
    if p.numel():
        with gpu.current(p.device):
            block = max(16, 1 << (size - 1).bit_length())
            kernel = kernels._newton_kernel[(alphas.numel(),)]
            kernel(p, alphas, v, size, iters, BLOCK=block, num_warps=8)  # pyright: ignore[reportCallIssue]
    return v


def not_supported_reasons(p: Tensor) -> list[str]:
    """Returns why Triton cannot step these matrices; empty when it can."""
    reasons = gpu.not_supported_reasons(p.device)
    if p.dtype != torch.float32:
        reasons.append(f"computes in float32, got {p.dtype}")
    if p.shape[-1] > _MAX_SIZE:
        reasons.append(f"a block holds up to {_MAX_SIZE} landmarks, got {p.shape[-1]}")
    return reasons
