"""Learning rates: scaled to the batch, and scheduled by timm under the Trainer."""

import difflib
import math
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Trainer
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from softmaxfree.errors import InputError

__all__ = [
    "LrScaling",
    "ScheduleName",
    "check_optimizer",
    "create_optimizer",
    "create_schedule",
    "epochs_done",
    "scaled_lr",
]

LrScaling = Literal["none", "linear", "sqrt"]
ScheduleName = Literal["cosine", "tanh", "wsd", "poly", "multistep", "constant"]


def scaled_lr(lr: float, scaling: LrScaling, base_batch: int, trainer: Trainer) -> float:
    """Return the peak learning rate for the images of one update: batch x processes x accumulated steps.

    Args:
        lr: the rate that belongs to `base_batch`.
        scaling: how the rate follows the batch.
        base_batch: images an update.
        trainer: tells processes and accumulation; its data module tells `batch_size`.

    Returns:
        The rate.

    Raises:
        InputError: the rate shall be scaled, but no data module tells its `batch_size`.
    """
    if scaling == "none":
        return lr
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if batch_size is None:
        raise InputError(f"model.lr_scaling {scaling} needs a data module with a batch_size")
    ratio = batch_size * trainer.world_size * trainer.accumulate_grad_batches / base_batch
    return lr * (ratio if scaling == "linear" else math.sqrt(ratio))


def check_optimizer(name: str) -> None:
    """Raises InputError, with the nearest names, where timm has no such optimizer."""
    base = name.lower().removeprefix("lookahead_")
    names = [str(known) for known in list_optimizers()]
    if base not in names:
        close = difflib.get_close_matches(base, names)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        raise InputError(f"model.opt: timm has no optimizer {name!r}; {hint}")


def create_optimizer(model: nn.Module, name: str, lr: float, arguments: dict[str, Any]) -> Optimizer:
    """Return an optimizer of timm for the weights that train.

    Args:
        model: whose weights are trained; tells what does not decay, and its layers.
        name: of the optimizer.
        lr: its rate.
        arguments: further ones of `timm.optim.create_optimizer_v2`.

    Returns:
        The optimizer.

    Raises:
        InputError: it does not take these arguments.
    """
    try:
        return create_optimizer_v2(model, name, lr=lr, **arguments)
    except InputError:
        raise
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(f"model.opt {name!r} with {arguments}: {error}") from error


def create_schedule(
    optimizer: Optimizer,
    name: ScheduleName,
    trainer: Trainer,
    *,
    warmup_epochs: float,
    warmup_lr: float,
    min_lr: float,
    decay_milestones: Sequence[float] | None = None,
    decay_rate: float = 0.1,
) -> Any:
    """Return a schedule of timm over the trainer's epochs; only timm's know the `lr_scale` of layer decay.

    Its clock is epochs, of which an update is a fraction (`epochs_done`). So the length of an epoch need not
    be known here: to ask the Trainer for it would start the loaders before a resumed run knows its epoch.

    Args:
        optimizer: whose rates are set.
        name: shape of the decay.
        trainer: tells `max_epochs`.
        warmup_epochs: length of the linear warm-up.
        warmup_lr: where it starts.
        min_lr: where the decay ends.
        decay_milestones: epochs after which "multistep" lowers the rate.
        decay_rate: by which factor "multistep" does; the power of "poly".

    Returns:
        The schedule.

    Raises:
        InputError: the trainer has no number of epochs, or "multistep" no milestones.
    """
    if not trainer.max_epochs or trainer.max_epochs < 0:
        raise InputError(
            f"trainer.max_epochs must be a whole number, 1 or more, since the learning rate follows it; got "
            f"{'nothing' if trainer.max_epochs is None else trainer.max_epochs}"
        )
    if name == "multistep" and not decay_milestones:
        raise InputError("model.decay_milestones must be given for model.sched 'multistep', such as [8, 11]")
    in_epochs: Any = {  # whose fractions timm's types do not know
        "warmup_epochs": warmup_epochs,
        "decay_milestones": [epoch + 1 for epoch in decay_milestones or ()],  # timm's are one early
    }
    schedule, _ = create_scheduler_v2(
        optimizer, name, trainer.max_epochs, warmup_lr=warmup_lr, min_lr=min_lr, decay_rate=decay_rate, **in_epochs
    )
    return schedule


def epochs_done(trainer: Trainer) -> float:
    """Return the updates done so far, in epochs."""
    return trainer.global_step / math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
