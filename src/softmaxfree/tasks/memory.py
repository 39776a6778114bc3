"""A step that needs more memory than the device has, in one line that says what to do."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from softmaxfree.errors import InputError

__all__ = ["tells_memory"]


P = ParamSpec("P")
R = TypeVar("R")


def tells_memory(step: Callable[P, R]) -> Callable[P, R]:
    """Decorates a method of a task: raises InputError in place of torch's error for a full device."""

    @functools.wraps(step)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return step(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            task: Any = args[0]
            raise InputError(_advice(task)) from error

    return wrapped


def _advice(task: Any) -> str:
    trainer = task.trainer
    batch = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    where = f"{task.device} is out of memory at step {task.global_step}"
    if task.device.type == "cuda":
        total = torch.cuda.get_device_properties(task.device).total_memory
        where += f" ({total / 2**30:.1f} GiB)"
    if not isinstance(batch, int):
        return f"{where}: use smaller batches and trainer.accumulate_grad_batches"
    if batch == 1:
        return f"{where} with data.batch_size 1: use smaller images, a smaller model, or model.grad_checkpointing true"
    half = batch // 2
    steps = trainer.accumulate_grad_batches * -(-batch // half)
    return (
        f"{where} with data.batch_size {batch}: give --data.batch_size={half} "
        f"--trainer.accumulate_grad_batches={steps}, which trains on as many images an update, or "
        "--model.grad_checkpointing=true"
    )
