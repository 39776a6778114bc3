"""The Triton kernel of `fused.py`."""

import triton
import triton.language as tl


@triton.jit
def _newton_kernel(matrices, alphas, inverses, size, iters, BLOCK: tl.constexpr):
    """All steps of one matrix, without leaving the chip; rows and columns beyond `size` stay 0."""
    i = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    inside = (lanes[:, None] < size) & (lanes[None, :] < size)
    offsets = i * size * size + lanes[:, None] * size + lanes[None, :]
    p = tl.load(matrices + offsets, mask=inside, other=0.0)  # [BLOCK, BLOCK]
    v = tl.load(alphas + i) * p
    for _ in range(iters):
        vp = tl.dot(v, p, input_precision="ieee")
        v = 2 * v - tl.dot(vp, v, input_precision="ieee")
    tl.store(inverses + offsets, v, mask=inside)
