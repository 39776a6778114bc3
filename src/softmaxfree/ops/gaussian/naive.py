"""The definition of the Gaussian kernel product. Every other implementation is judged against this file."""

import torch
from torch import Tensor

from softmaxfree.ops.precision import widen


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """Returns `K_ij = exp(-|x_i - y_j|^2 / 2)`, `(..., N, M)`, for `x (..., N, D)` and `y (..., M, D)`."""
    x, y = widen(x), widen(y)
    x2 = x.square().sum(-1).unsqueeze(-1)
    y2 = y.square().sum(-1).unsqueeze(-2)
    distance2 = x2 + y2 - 2 * (x @ y.transpose(-1, -2))
    return torch.exp(distance2.clamp_min(0) * -0.5)  # rounding makes equal tokens slightly negative


def forward(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Returns `K b`, `(..., N, E)`."""
    return (kernel(x, y) @ widen(b)).to(out_dtype)


def backward(x: Tensor, y: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y` and `b`; see README.md for the derivation.

    It is made of differentiable operations, so that it also serves the second derivative.
    """
    k, g = kernel(x, y), widen(grad)
    s = k * (g @ widen(b).transpose(-1, -2))
    grad_x, grad_y = _toward(s, x, y), _toward(s.transpose(-1, -2), y, x)
    grad_b = k.transpose(-1, -2) @ g
    return grad_x.to(x.dtype), grad_y.to(y.dtype), grad_b.to(b.dtype)


def tied_forward(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `K z K^T v` and, for the gradient, `K^T v` in the dtype of `z`."""
    k = kernel(x, y)
    kv = k.transpose(-1, -2) @ widen(v)
    return (k @ (z @ kv)).to(v.dtype), kv


def tied_backward(
    x: Tensor, y: Tensor, z: Tensor, v: Tensor, kv: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y`, `z` and `v`; differentiable again."""
    k, g = kernel(x, y), widen(grad)
    grad_w = k.transpose(-1, -2) @ g
    grad_kv = z.transpose(-1, -2) @ grad_w
    s = k * (g @ (z @ kv).transpose(-1, -2) + widen(v) @ grad_kv.transpose(-1, -2))
    grad_x, grad_y = _toward(s, x, y), _toward(s.transpose(-1, -2), y, x)
    return grad_x.to(x.dtype), grad_y.to(y.dtype), grad_w @ kv.transpose(-1, -2), (k @ grad_kv).to(v.dtype)


def _toward(s: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return s @ widen(y) - s.sum(-1, keepdim=True) * widen(x)


def not_supported_reasons(x: Tensor, y: Tensor, b: Tensor) -> list[str]:
    """Returns an empty list: the definition runs everywhere."""
    return []
