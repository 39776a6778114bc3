"""The one gradient of every solver: `dL/dA = -Y^T (dL/dY) Y^T` with `Y` the computed inverse (README.md)."""

import torch
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula

from softmaxfree.errors import InputError
from softmaxfree.ops.pinv.solvers import solver_from_json
from softmaxfree.ops.precision import full_precision


@library.custom_op("softmaxfree::pinv", mutates_args=())
def _pinv(gram: Tensor, solver: str) -> Tensor:
    with full_precision(gram):
        own = solver_from_json(solver)
        out = own.compute(gram)
    if out.shape != gram.shape or out.dtype != gram.dtype:
        expected = f"{tuple(gram.shape)} {gram.dtype}"
        raise InputError(f"{own.name} must compute {expected}, and returned {tuple(out.shape)} {out.dtype}")
    return out.contiguous()


@_pinv.register_fake
def _(gram: Tensor, solver: str) -> Tensor:
    return gram.new_empty(gram.shape)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.save_for_forward(output)


def _gradient(ctx, grad: Tensor):
    (inverse,) = ctx.saved_tensors
    with full_precision(grad):
        return -(inverse.mT @ grad @ inverse.mT), None


class Pinv(torch.autograd.Function):
    """The same op and gradient for `torch.func` and forward-mode derivatives, which custom ops do not take."""

    forward = staticmethod(lambda gram, solver: torch.ops.softmaxfree.pinv(gram, solver))
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_gradient)

    @staticmethod
    def jvp(ctx, tangent: Tensor, _: None) -> Tensor:
        """Returns `-Y dA Y`."""
        (inverse,) = ctx.saved_tensors
        with full_precision(tangent):
            return -(inverse @ tangent @ inverse)

    @staticmethod
    def vmap(info, in_dims: tuple, gram: Tensor, solver: str) -> tuple[Tensor, int]:
        """Takes what is mapped over as further images."""
        gram = gram.movedim(in_dims[0], 0)
        return Pinv.apply(gram.flatten(0, 1), solver).unflatten(0, gram.shape[:2]), 0


_pinv.register_autograd(_gradient, setup_context=_setup_context)


@register_flop_formula(torch.ops.softmaxfree.pinv)
def _flops(gram_shape, solver: str, *args, out_shape=None, **kwargs) -> int:
    *batch, m, _ = gram_shape
    return torch.Size(batch).numel() * solver_from_json(solver).flops(m)
