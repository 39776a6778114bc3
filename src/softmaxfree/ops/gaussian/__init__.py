"""Gaussian kernel product `out_i = sum_j exp(-|x_i - y_j|^2 / 2) b_j`, and the kernel matrix of the landmarks."""

import torch
from jaxtyping import Float
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula

from softmaxfree.ops import dispatch, transforms
from softmaxfree.ops.gaussian import (
    blocked,
    fused,
    naive,
    tied,  # noqa: F401  registers torch.ops.softmaxfree.gaussian_tied_product
)
from softmaxfree.ops.precision import compute_dtype, full_precision, widen

__all__ = ["gaussian_gram", "gaussian_product"]

dispatch.register("gaussian", fused=fused, blocked=blocked, naive=naive)


def gaussian_product(
    x: Float[Tensor, "B H N D"],
    y: Float[Tensor, "B H M D"],
    b: Float[Tensor, "B H M E"],
    *,
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "B H N E"]:
    """Multiplies the Gaussian kernel matrix of two sets of points with a matrix.

    Computed in float32 (float64 for float64), also under autocast. Differentiable twice.

    Args:
        x: points `(B, H, N, D)`, any float dtype.
        y: points `(B, H, M, D)`, dtype of `x`.
        b: values `(B, H, M, E)`, dtype of `x` or float32.
        out_dtype: dtype of the result; that of `b` when None.

    Returns:
        `(B, H, N, E)`: `sum_j exp(-|x_i - y_j|^2 / 2) b_j`.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit each other.
    """
    _check(x, y, b)
    with full_precision(x):
        return product(x, y, b, b.dtype if out_dtype is None else out_dtype)


def product(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """`gaussian_product` without checks."""
    if torch.compiler.is_exporting() or transforms.at_work():
        return naive.forward(x, y, b, out_dtype)
    return torch.ops.softmaxfree.gaussian_product(x, y, b, out_dtype)


def tied_product(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """Returns `K z K^T v` with `K` the kernel matrix of `x` and `y`: self-attention.

    Args:
        x: points `(B, H, N, D)`.
        y: points `(B, H, M, D)`, dtype of `x`.
        z: matrices `(B, H, M, M)`, float32 or float64.
        v: values `(B, H, N, E)`, dtype of `x`.

    Returns:
        `(B, H, N, E)` in the dtype of `v`.
    """
    if torch.compiler.is_exporting() or transforms.at_work():
        return naive.tied_forward(x, y, z, v)[0]
    return torch.ops.softmaxfree.gaussian_tied_product(x, y, z, v)[0]


def gaussian_gram(landmarks: Float[Tensor, "B H M D"]) -> Float[Tensor, "B H M M"]:
    """Returns the kernel matrix of a set of points with itself: symmetric, unit diagonal.

    Args:
        landmarks: points `(B, H, M, D)`, any float dtype.

    Returns:
        `(B, H, M, M)` in float32 (float64 for float64).
    """
    with full_precision(landmarks):
        return gram(landmarks)


def gram(landmarks: Tensor) -> Tensor:
    """`gaussian_gram` without checks."""
    x = widen(landmarks)
    x = x - naive.centre(x)
    inner = x @ x.transpose(-1, -2)
    # |x_i|^2 from the same product as x_i . x_j, so that the distance of a point to itself is exactly 0
    x2 = torch.diagonal(inner, dim1=-2, dim2=-1)
    return naive.exponential(x2.unsqueeze(-1) + x2.unsqueeze(-2) - 2 * inner)


@library.custom_op("softmaxfree::gaussian_product", mutates_args=())
def _forward(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    with full_precision(x):
        return dispatch.choose("gaussian", x, y, b).forward(x, y, b, out_dtype).contiguous()


@_forward.register_fake
def _(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    return x.new_empty(*x.shape[:-1], b.shape[-1], dtype=out_dtype)


@library.custom_op("softmaxfree::gaussian_product_backward", mutates_args=())
def _backward(x: Tensor, y: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with full_precision(x):
        grads = dispatch.choose("gaussian", x, y, b).backward(x, y, b, grad)
    return grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()


@_backward.register_fake
def _(x: Tensor, y: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape), b.new_empty(b.shape)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _gradient(ctx, grad: Tensor):
    x, y, b = ctx.saved_tensors
    # grad mode is on here only when the caller asked for a graph of the gradient (second derivative)
    if torch.is_grad_enabled() or transforms.at_work():
        with full_precision(x):
            return *naive.backward(x, y, b, grad), None
    return *torch.ops.softmaxfree.gaussian_product_backward(x, y, b, grad), None


_forward.register_autograd(_gradient, setup_context=_setup_context)


@register_flop_formula(torch.ops.softmaxfree.gaussian_product)
def _forward_flops(x_shape, y_shape, b_shape, *args, out_shape=None, **kwargs) -> int:
    *batch, n, d = x_shape
    m, e = b_shape[-2:]
    return 2 * torch.Size(batch).numel() * n * m * (d + e)


@register_flop_formula(torch.ops.softmaxfree.gaussian_product_backward)
def _backward_flops(x_shape, y_shape, b_shape, *args, out_shape=None, **kwargs) -> int:
    *batch, n, d = x_shape
    m, e = b_shape[-2:]
    return 2 * torch.Size(batch).numel() * n * m * (3 * d + 2 * e)


def _check(x: Tensor, y: Tensor, b: Tensor) -> None:
    if x.shape[:-2] != y.shape[:-2] or x.shape[:-2] != b.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            "x, y, b must be (..., N, D), (..., M, D), (..., M, E); "
            f"got {tuple(x.shape)}, {tuple(y.shape)}, {tuple(b.shape)}"
        )
    if y.shape[-2] != b.shape[-2]:
        raise ValueError(f"b must have one row for each of y's {y.shape[-2]} points, got {b.shape[-2]}")
    if y.dtype != x.dtype or b.dtype not in (x.dtype, compute_dtype(x.dtype)):
        raise ValueError(
            f"x, y and b must share a dtype, but b may be float32 beside half precision; got {x.dtype}, {y.dtype}, "
            f"{b.dtype}"
        )
    if not x.device == y.device == b.device:
        raise ValueError(f"x, y and b must be on one device; got {x.device}, {y.device}, {b.device}")
