"""The Gaussian kernel product in Triton: forward, and the gradients of all three inputs (README.md, "Fused").

One kernel does it all. Each program holds a block of rows of one side and walks over a chunk of the other side:

    product_r  = sum_c K_rc w_c
    gradient_r = sum_c S_rc p_c - (sum_c S_rc) p_r,   S_rc = K_rc (u_r . w_c)

with all points seen from one centre.
"""

import torch
from torch import Tensor

from softmaxfree.ops import gpu
from softmaxfree.ops.gaussian import naive

_MAX_WIDTH = 128
# others that one program walks over at least; more where rows are many, to keep partial sums small
_CHUNK = 512
_MAX_PROGRAMS = 2**31 - 1
_BLOCK = 32  # rows, and others at a time: the largest that keeps every sum in registers


def forward(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Returns `K b`, `(B, H, N, E)`."""
    return _rows(x, None, y, b, _centre(y), product=out_dtype, gradient=None)[0]


def backward(x: Tensor, y: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y` and `b`; computes the kernel again, once for each side."""
    centre = _centre(y)
    _, grad_x = _rows(x, grad, y, b, centre, product=None, gradient=x.dtype)
    grad_b, grad_y = _rows(y, b, x, grad, centre, product=b.dtype, gradient=y.dtype)
    return grad_x, grad_y, grad_b


def tied_forward(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `K z K^T v` and, for the gradient, `K^T v` in the dtype of `z`."""
    centre = _centre(y)
    kv, _ = _rows(y, None, x, v, centre, product=z.dtype, gradient=None)
    out, _ = _rows(x, None, y, z @ kv, centre, product=v.dtype, gradient=None)
    return out, kv


def tied_backward(
    x: Tensor, y: Tensor, z: Tensor, v: Tensor, kv: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y`, `z` and `v`; computes the kernel again, three times."""
    centre = _centre(y)
    w, (grad_w, _) = z @ kv, _rows(y, None, x, grad, centre, product=z.dtype, gradient=None)
    grad_kv, grad_z = z.mT @ grad_w, grad_w @ kv.mT
    width = v.shape[-1]
    if 2 * width > _MAX_WIDTH:
        grad_v, second_x = _rows(x, v, y, grad_kv, centre, product=v.dtype, gradient=torch.float32)
        _, first_x = _rows(x, grad, y, w, centre, product=None, gradient=torch.float32)
        _, second_y = _rows(y, grad_kv, x, v, centre, product=None, gradient=torch.float32)
        _, first_y = _rows(y, w, x, grad, centre, product=None, gradient=torch.float32)
        return (first_x + second_x).to(x.dtype), (first_y + second_y).to(y.dtype), grad_z, grad_v
    # side by side, the values of both sums take one pass
    tokens = torch.cat([grad.to(z.dtype), v.to(z.dtype)], -1)
    landmarks = torch.cat([w, grad_kv], -1)
    product, grad_x = _rows(x, tokens, y, landmarks, centre, product=v.dtype, gradient=x.dtype)
    _, grad_y = _rows(y, landmarks, x, tokens, centre, product=None, gradient=y.dtype)
    return grad_x, grad_y, grad_z, product[..., width:]


def not_supported_reasons(x: Tensor, y: Tensor, b: Tensor) -> list[str]:
    """Returns why Triton cannot compute the product of these tensors; empty when it can."""
    reasons = gpu.not_supported_reasons(x.device)
    if x.ndim != 4:
        reasons.append(f"needs (B, H, N, D), got {x.ndim} dimensions")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        reasons.append(f"computes in float32, got {x.dtype}")
    if max(x.shape[-1], b.shape[-1]) > _MAX_WIDTH:
        reasons.append(f"a block holds widths up to {_MAX_WIDTH}, got {x.shape[-1]} and {b.shape[-1]}")
    if x.ndim == 4 and x.shape[:2].numel() * max(x.shape[2], y.shape[2]) > _MAX_PROGRAMS:
        reasons.append(f"numbers its blocks up to {_MAX_PROGRAMS}, got {x.shape[:2].numel()} heads of {x.shape[2]}")
    return reasons


def _rows(
    points: Tensor,
    values: Tensor | None,
    other_points: Tensor,
    other_values: Tensor,
    centre: Tensor,
    product: torch.dtype | None,
    gradient: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Returns the product and the gradient of each row, each empty unless a dtype is given for it."""
    from softmaxfree.ops.gaussian import kernels

    batch, heads, rows, width = points.shape
    others, value_width = other_values.shape[-2:]
    values = other_values if values is None else values  # not read
    # independent of the batch, so that an image's sums are taken in the same order whatever its neighbours
    chunk = max(_CHUNK, 8 * rows)
    splits = max(1, -(-others // chunk))

    def memory(dtype: torch.dtype | None, width: int) -> Tensor:
        if dtype is None:
            return points.new_empty(0)
        return points.new_empty(splits, batch, heads, rows, width, dtype=torch.float32 if splits > 1 else dtype)

    products, gradients = memory(product, value_width), memory(gradient, width)
    programs = batch * heads * -(-rows // _BLOCK)
    if programs:
        with gpu.current(points.device):
            kernels._gaussian_rows_kernel[(programs, splits)](
                points,
                points.stride(),
                values,
                values.stride(),
                other_points,
                other_points.stride(),
                other_values,
                other_values.stride(),
                centre,
                products,
                gradients,
                heads,
                rows,
                others,
                width,
                value_width,
                chunk,
                PRODUCT=product is not None,
                GRADIENT=gradient is not None,
                NARROW=points.dtype != torch.float32,
                BLOCK_R=_BLOCK,
                BLOCK_C=_BLOCK,
                BLOCK_D=_padded(width),
                BLOCK_E=_padded(value_width),
                num_warps=4 if max(width, value_width) <= 64 else 8,  # pyright: ignore[reportCallIssue]
                num_stages=2,  # pyright: ignore[reportCallIssue]
            )
    return _reduced(products, product), _reduced(gradients, gradient)


def _centre(y: Tensor) -> Tensor:
    """Returns the centre `(B, H, 1, D)`, float32; for halves 0 unless it is farther from 0 than points are from it.

    Products of halves are exact and fast as they stand; seen from a centre they are neither.
    """
    centre = naive.centre(y)
    if y.dtype == torch.float32:
        return centre
    spread = (y - centre).square().sum(-1, keepdim=True).mean(-2, keepdim=True)
    return torch.where(centre.square().sum(-1, keepdim=True) > spread, centre, 0)


def _reduced(partial: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Sums over chunks, always in the same order."""
    if dtype is None:
        return partial
    return partial[0] if partial.shape[0] == 1 else partial.sum(0).to(dtype)


def _padded(width: int) -> int:
    """Returns the smallest size of a block that holds `width`: a power of two, and 16 for a matrix unit."""
    return max(16, 1 << (width - 1).bit_length())
