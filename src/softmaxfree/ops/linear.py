"""Linear layers by oneDNN on CPUs with AVX-512: torch takes MKL, which stays with AVX2 where the maker is not Intel."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require_known
from softmaxfree.ops import transforms

__all__ = ["linear"]

_PLAIN = (Tensor, nn.Parameter)
_ABLE = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_BFLOAT16 = _ABLE and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: Literal["none", "gelu_tanh"] = "none") -> Tensor:
    """Returns `x W^T + b`, as `torch.nn.functional.linear`, from which it differs by rounding alone; or its GELU.

    On a CPU with AVX-512, oneDNN computes it in float32 with its gradients, and without gradients in bfloat16, also
    under autocast. What looks into torch's operations, such as export, tracing, `torch.compile`, `torch.func` and
    counters of operations, gets torch's own.

    Args:
        x: `(..., in)`.
        weight: `(out, in)`.
        bias: `(out,)`.
        act: "gelu_tanh" takes the GELU of the result, in its form with tanh; without gradients in the same pass.

    Returns:
        `(..., out)`.

    Raises:
        InputError: there is no such `act`.
    """
    require_known("act", act, ("none", "gelu_tanh"))
    if not (_ABLE and _takes(x, weight, bias)):
        return _activated(F.linear(x, weight, bias), act)
    dtype = _dtype(x, weight, bias)
    wanted = torch.is_grad_enabled() and any(of is not None and of.requires_grad for of in (x, weight, bias))
    if dtype is None or (wanted and dtype is not torch.float32):
        return _activated(F.linear(x, weight, bias), act)
    rows, shape = x.reshape(-1, x.shape[-1]), (*x.shape[:-1], len(weight))
    if wanted:
        return _activated(_Linear.apply(rows, weight, bias).view(shape), act)
    bias = None if bias is None else bias.to(dtype)
    return _product(rows.to(dtype), weight.to(dtype), bias, act).view(shape)


def _activated(x: Tensor, act: str) -> Tensor:
    return F.gelu(x, approximate="tanh") if act == "gelu_tanh" else x


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Returns whether these are plain tensors of the usual shapes on a CPU, and nothing but a mode looks on."""
    return (
        bool(torch.backends.mkldnn.enabled)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and all(_is_plain(of) for of in (x, weight, *(() if bias is None else (bias,))))
        and x.numel() > 0
        and x.ndim > 1
        and weight.ndim == 2
        and weight.shape[1] == x.shape[-1]
        and (bias is None or bias.shape == weight.shape[:1])
        and not transforms.at_work()
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def _is_plain(x: Tensor) -> bool:
    return type(x) in _PLAIN and x.device.type == "cpu" and x.layout is torch.strided and not x.is_nested


def _dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """Returns what torch computes in, if oneDNN takes it."""
    given = {of.dtype for of in (x, weight, bias) if of is not None}
    if torch.is_autocast_enabled("cpu"):
        given = {torch.get_autocast_dtype("cpu")} if given <= {torch.float32, torch.bfloat16} else set()
    dtype = given.pop() if len(given) == 1 else None
    return dtype if dtype is torch.float32 or (dtype is torch.bfloat16 and _BFLOAT16) else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, act: str = "none") -> Tensor:
    # a mode may be there in a pass and not where it is computed again for gradients: both must keep the same tensors
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return _activated(F.linear(x, weight, bias), act)
    name, kind = ("gelu", "tanh") if act == "gelu_tanh" else ("none", "")
    bias = None if bias is None else bias.contiguous()  # the operation reads it as if it were
    return torch.ops.mkldnn._linear_pointwise(_as_matrix(x), _as_matrix(weight), bias, name, [], kind)


def _as_matrix(x: Tensor) -> Tensor:
    """Returns a matrix whose rows, or columns, lie one after another, which is all that oneDNN takes."""
    (rows, columns), (down, along) = x.shape, x.stride()
    return x if (along == 1 and down >= columns) or (down == 1 and along >= rows) else x.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        ctx.set_materialize_grads(False)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if grad is None:
            return None, None, None
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear(grad, weight.T) if of_x else None,
            linear(grad.T, x.T) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
