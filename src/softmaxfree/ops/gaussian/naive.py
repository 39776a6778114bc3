"""The definition of the Gaussian kernel product. Every other implementation is judged against this file."""

import torch
from torch import Tensor

from softmaxfree.ops.precision import compute_dtype, widen


def centre(y: Tensor) -> Tensor:
    """Returns the point that `x` and `y (..., M, D)` are seen from, `(..., 1, D)`: the mean of `y`, a constant.

    In the dtype of the computation; 0 where the mean is not finite.
    """
    return y.detach().mean(-2, keepdim=True, dtype=compute_dtype(y.dtype)).nan_to_num(0.0, 0.0, 0.0)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """Returns `K_ij = exp(-|x_i - y_j|^2 / 2)`, `(..., N, M)`, for `x (..., N, D)` and `y (..., M, D)`."""
    return _kernel_of_centred(*_centred(x, y))


def exponential(distance2: Tensor) -> Tensor:
    """Returns `exp(-distance2 / 2)`, at most 1: rounding makes the squared distance of equal points negative."""
    # a constant lifts them to 0: the derivatives of a clamp would be 0, those of the distance are right
    return torch.exp((distance2 + (-distance2).clamp_min(0).detach()) * -0.5)


def forward(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Returns `K b`, `(..., N, E)`."""
    return (kernel(x, y) @ widen(b)).to(out_dtype)


def backward(x: Tensor, y: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y` and `b`; see README.md for the derivation.

    It is made of differentiable operations, so that it also serves the second derivative.
    """
    dtypes = x.dtype, y.dtype, b.dtype
    x, y = _centred(x, y)
    k, g = _kernel_of_centred(x, y), widen(grad)
    s = k * (g @ widen(b).transpose(-1, -2))
    grad_x, grad_y = _toward(s, x, y), _toward(s.transpose(-1, -2), y, x)
    grad_b = (g.transpose(-1, -2) @ k).transpose(-1, -2)  # as autograd: for one landmark MKL sums better so
    return grad_x.to(dtypes[0]), grad_y.to(dtypes[1]), grad_b.to(dtypes[2])


def tied_forward(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `K z K^T v` and, for the gradient, `K^T v` in the dtype of `z`."""
    k = kernel(x, y)
    kv = k.transpose(-1, -2) @ widen(v)
    return (k @ (z @ kv)).to(v.dtype), kv


def tied_backward(
    x: Tensor, y: Tensor, z: Tensor, v: Tensor, kv: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y`, `z` and `v`; differentiable again."""
    dtypes = x.dtype, y.dtype
    x, y = _centred(x, y)
    k, g = _kernel_of_centred(x, y), widen(grad)
    grad_w = k.transpose(-1, -2) @ g
    grad_kv = z.transpose(-1, -2) @ grad_w
    s = k * (g @ (z @ kv).transpose(-1, -2) + widen(v) @ grad_kv.transpose(-1, -2))
    grad_x, grad_y = _toward(s, x, y), _toward(s.transpose(-1, -2), y, x)
    return grad_x.to(dtypes[0]), grad_y.to(dtypes[1]), grad_w @ kv.transpose(-1, -2), (k @ grad_kv).to(v.dtype)


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    c = centre(y)
    return widen(x) - c, widen(y) - c


def _kernel_of_centred(x: Tensor, y: Tensor) -> Tensor:
    x2 = x.square().sum(-1).unsqueeze(-1)
    y2 = y.square().sum(-1).unsqueeze(-2)
    return exponential(x2 + y2 - 2 * (x @ y.transpose(-1, -2)))


def _toward(s: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return s @ y - s.sum(-1, keepdim=True) * x


def not_supported_reasons(x: Tensor, y: Tensor, b: Tensor) -> list[str]:
    """Returns an empty list: the definition runs everywhere."""
    return []
