"""Batch norm over the valid cells of a batch, in one process or in several."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from softmaxfree.layers.padding import zero_padding


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
    cells = wide.new_full((1,), x.shape[0] * x.shape[2] * x.shape[3])
    if mask is not None:
        cells = mask.sum(dtype=wide.dtype).reshape(1)
        valid = mask.unsqueeze(1).to(wide.dtype)
        wide = wide * valid
    totals = _sum_of_all(torch.cat((wide.sum((0, 2, 3)), cells)), group)
    count = totals[-1].detach()
    count = count.masked_fill(count < 2, torch.nan)
    mean = totals[:-1] / count
    centred = wide - mean[:, None, None]
    if mask is not None:
        centred = centred * valid
    variance = _sum_of_all(centred.square().sum((0, 2, 3)), group) / count
    _track(norm, mean.detach(), variance.detach() * (count / (count - 1)))
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    out = centred * scale[:, None, None]
    if norm.bias is not None:
        shift = norm.bias[:, None, None]
        out = out + (shift if mask is None else shift * valid)
    return out.to(x.dtype)


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
            running.lerp_(new.to(running.dtype), rate)


def _sum_of_all(x: Tensor, group: Any) -> Tensor:
    """Returns the sum of what the processes have, with the gradient of all of their losses."""
    return x if group is None else _AllReduce.apply(x, group)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None
