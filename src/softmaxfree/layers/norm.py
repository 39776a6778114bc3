"""Batch norm over the valid cells of a batch, in one process or in several."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from softmaxfree.layers.padding import zero_padding

_CELLS = (0, 2, 3)


def batch_norm(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Applies a norm to a map; a batch norm in training takes its statistics over the valid cells.

    `SyncBatchNorm` takes them over those of all processes, which may have different numbers of them, on any device. It
    does so in one way with and without a mask: one process may have padding where another has none.

    Args:
        norm: `BatchNorm2d`, `SyncBatchNorm` or another norm.
        x: `(B, C, Y, X)`, finite everywhere.
        mask: `(B, Y, X)` bool, True where a cell is valid.

    Returns:
        The normalised map, zero in the padding; nan if there is one valid cell alone, which has no variance.
    """
    group = _processes(norm)
    if group is None and mask is None:
        return norm(x)
    if not (isinstance(norm, _BatchNorm) and norm.training):
        out = norm(x)
        return out if mask is None else zero_padding(out, mask)
    return _normalised(norm, x, mask, group)


def _processes(norm: nn.Module) -> Any:
    """Returns the group of processes that the norm shares its statistics with, or None."""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training and dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _normalised(norm: _BatchNorm, x: Tensor, mask: Tensor | None, group: Any) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    valid = None if mask is None else mask.unsqueeze(1).to(wide.dtype)
    out, mean, variance, count = _Normalise.apply(wide, valid, norm.weight, norm.bias, norm.eps, group)
    _track(norm, mean, variance * (count / (count - 1)))
    return out.to(x.dtype)


class _Normalise(torch.autograd.Function):
    """The map, and mean, variance and number of its valid cells, which have no gradient.

    By hand, because autograd would pass over the map twice as often. Weight and bias get the gradient of this process
    alone, the map that of all losses, as with torch's SyncBatchNorm.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, valid: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cells = x.new_full((1,), x.shape[0] * x.shape[2] * x.shape[3]) if valid is None else valid.sum().reshape(1)
        totals = _sum_of_all(torch.cat((_masked(x, valid).sum(_CELLS), cells)), group)
        count = totals[-1].masked_fill(totals[-1] < 2, torch.nan)
        mean = totals[:-1] / count
        centred = x - _column(mean)
        if valid is not None:
            centred.mul_(valid)
        out = centred.square()  # torch's norm loses digits over many cells, and is slower
        variance = _sum_of_all(out.sum(_CELLS), group) / count
        inverse = (variance + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        if bias is None:
            torch.mul(centred, _column(scale), out=out)
        else:
            torch.addcmul(_column(bias.to(x.dtype)), centred, _column(scale), out=out)
            if valid is not None:
                out.mul_(valid)
        ctx.group = group
        ctx.save_for_backward(centred, valid, weight, bias, inverse, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        centred, valid, weight, bias, inverse, scale, count = ctx.saved_tensors
        grad = _masked(grad, valid)
        of_bias, of_scale = grad.sum(_CELLS), (grad * centred).sum(_CELLS)
        of_weight = None if weight is None else (of_scale * inverse).to(weight.dtype)
        sums = _sum_of_all(torch.cat((of_bias, of_scale)), ctx.group) / count
        along, shift = sums.chunk(2)[1] * inverse.square(), sums.chunk(2)[0]
        out = torch.addcmul(grad, centred, _column(along), value=-1).sub_(_column(shift)).mul_(_column(scale))
        if valid is not None:
            out.mul_(valid)
        return out, None, of_weight, None if bias is None else of_bias.to(bias.dtype), None, None


def _masked(x: Tensor, valid: Tensor | None) -> Tensor:
    return x if valid is None else x * valid


def _column(x: Tensor) -> Tensor:
    return x[:, None, None]


def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Moves the running statistics as torch does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        rate: Any = norm.momentum
        if rate is None:  # a plain mean over all batches
            rate = norm.num_batches_tracked.to(norm.running_mean.dtype).reciprocal()
        for running, new in ((norm.running_mean, mean), (norm.running_var, variance)):
            # one valid cell has no variance: its batch is lost, but not all that is evaluated later
            running.lerp_(torch.where(new.isfinite(), new.to(running.dtype), running), rate)


def _sum_of_all(x: Tensor, group: Any) -> Tensor:
    """Returns the sum of what the processes have."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x
