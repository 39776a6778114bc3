"""Both kernel products of self-attention, `K z K^T v`, as one op with one gradient (README.md, "Tied")."""

import torch
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula

from softmaxfree.ops import dispatch, transforms
from softmaxfree.ops.gaussian import naive
from softmaxfree.ops.precision import full_precision


@library.custom_op("softmaxfree::gaussian_tied_product", mutates_args=())
def _forward(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the result, and `K^T v` for the gradient."""
    with full_precision(x):
        out, kv = dispatch.choose("gaussian", x, y, v).tied_forward(x, y, z, v)
    return _as_token_rows(out), kv


@_forward.register_fake
def _(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_token_rows(v), z.new_empty(*y.shape[:-1], v.shape[-1])


@library.custom_op("softmaxfree::gaussian_tied_product_backward", mutates_args=())
def _backward(
    x: Tensor, y: Tensor, z: Tensor, v: Tensor, kv: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with full_precision(x):
        grad_x, grad_y, grad_z, grad_v = dispatch.choose("gaussian", x, y, v).tied_backward(x, y, z, v, kv, grad)
    return _as_token_rows(grad_x), grad_y.contiguous(), grad_z.contiguous(), _as_token_rows(grad_v)


@_backward.register_fake
def _(x: Tensor, y: Tensor, z: Tensor, v: Tensor, kv: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_token_rows(x), y.new_empty(y.shape), z.new_empty(z.shape), _empty_token_rows(v)


def _as_token_rows(tokens: Tensor) -> Tensor:
    """Returns `(B, H, N, D)` as projections want it: a token's heads side by side in memory."""
    return tokens.transpose(1, 2).contiguous().transpose(1, 2)


def _empty_token_rows(tokens: Tensor) -> Tensor:
    b, h, n, d = tokens.shape
    return tokens.new_empty(b, n, h, d).transpose(1, 2)


def _setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradient(ctx, grad: Tensor, _: Tensor):
    x, y, z, v, kv = ctx.saved_tensors
    # grad mode is on here only when the caller asked for a graph of the gradient (second derivative)
    if torch.is_grad_enabled() or transforms.at_work():
        with full_precision(x):
            return naive.tied_backward(x, y, z, v, naive.forward(y, x, v, z.dtype), grad)
    return torch.ops.softmaxfree.gaussian_tied_product_backward(x, y, z, v, kv, grad)


_forward.register_autograd(_gradient, setup_context=_setup_context)


@register_flop_formula(torch.ops.softmaxfree.gaussian_tied_product)
def _forward_flops(x_shape, y_shape, z_shape, v_shape, *args, out_shape=None, **kwargs) -> int:
    *batch, n, d = x_shape
    m, e = y_shape[-2], v_shape[-1]
    return 4 * torch.Size(batch).numel() * (n * m * (d + e) + m * m * e // 2)


@register_flop_formula(torch.ops.softmaxfree.gaussian_tied_product_backward)
def _backward_flops(x_shape, y_shape, z_shape, v_shape, *args, out_shape=None, **kwargs) -> int:
    *batch, n, d = x_shape
    m, e = y_shape[-2], v_shape[-1]
    return 2 * torch.Size(batch).numel() * (n * m * (4 * d + 4 * e) + 3 * m * m * e)
