"""The moving average of the weights, and what a run is too short for."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer, WeightAveraging

from softmaxfree.arguments import require
from softmaxfree.errors import InputError

__all__ = ["Average", "ema_decay_at", "require_averaged", "too_short_for"]

_TENTH = 10  # with warm-up the average is over the last tenth of the updates so far


class Average(WeightAveraging):
    """Exponential moving average of the weights; buffers that count or tell are copied.

    The number of updates, which the warm-up follows, is in the checkpoint.

    Args:
        decay: of the average.
        warmup: start with a shorter average, see `ema_decay_at`.
    """

    def __init__(self, decay: float, warmup: bool = True) -> None:
        def average(averaged: Any, current: Any, count: Any) -> None:
            if averaged[0].is_floating_point() or averaged[0].is_complex():
                weight = 1 - ema_decay_at(int(count), decay, warmup=warmup)
                torch._foreach_lerp_(averaged, current, weight)
            else:
                torch._foreach_copy_(averaged, current)

        super().__init__(multi_avg_fn=torch.no_grad()(average))

    @property
    def state_key(self) -> str:
        """That of Lightning's class, under which earlier checkpoints hold the state."""
        return WeightAveraging.__qualname__


def require_averaged(decay: float, sharded: bool, precision: str) -> None:
    """Refuse an average that cannot be.

    Args:
        decay: of the average.
        sharded: whether the weights are.
        precision: of the Trainer.

    Raises:
        InputError: the decay is none, or weights are sharded or not in 32 bits.
    """
    require(0 <= decay <= 1, "model.ema_decay", decay, "from 0 to 1")
    if sharded:
        raise InputError("model.ema_decay must be null with sharded weights (trainer.strategy)")
    if precision.endswith("-true") and precision != "32-true":
        raise InputError(
            f"model.ema_decay must be null with trainer.precision {precision}: weights are averaged in 32 bits alone"
        )


def ema_decay_at(count: int, decay: float, *, warmup: bool) -> float:
    """Return the decay after a number of updates.

    With warm-up it is `1 - (1 + count / 10)^-1`, at most `decay`: timm's `ModelEmaV3` with `warmup_gamma=10` and
    `warmup_power=1`. The average then forgets the first weights, whatever the length of the run, and reaches
    0.99996 after 250,000 updates.

    Args:
        count: updates of the average so far.
        decay: of a long run.
        warmup: whether to start with less.

    Returns:
        The decay, in [0, 1].
    """
    return min(decay, 1 - 1 / (1 + count / _TENTH)) if warmup else decay


def too_short_for(trainer: Any, arguments: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that the run has too few epochs or updates for.

    Args:
        trainer: a Trainer, which knows the number of batches.
        arguments: of a task.

    Yields:
        A line without its end.
    """
    epochs, batches = trainer.max_epochs or 0, trainer.num_training_batches
    if trainer.fast_dev_run or not math.isfinite(batches) or not batches:
        return
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    updates = planned = epochs * per_epoch
    if 0 <= trainer.max_steps < planned:
        updates = trainer.max_steps
        yield (
            f"trainer.max_steps {updates} ends the run in epoch {math.ceil(updates / per_epoch)} of {epochs}: "
            f"the learning rate follows trainer.max_epochs and does not reach its end"
        )
    if any(isinstance(c, Timer) and c.time_remaining() is not None for c in trainer.callbacks):
        yield "trainer.max_time may end the run early: the learning rate follows trainer.max_epochs all the same"
    if arguments["sched"] != "constant" and arguments["warmup_epochs"] >= epochs:
        yield (
            f"model.warmup_epochs {arguments['warmup_epochs']:g} is not shorter than trainer.max_epochs {epochs}: "
            f"the learning rate rises to the end of the run"
        )
    decay = arguments["ema_decay"]
    if decay is None or decay >= 1 or 1 / (1 - decay) <= updates:
        return
    horizon = f"model.ema_decay {decay:g} averages over {1 / (1 - decay):,.0f} updates, and the run has {updates:,}"
    if arguments["ema_warmup"]:
        reached = ema_decay_at(updates, decay, warmup=True)
        yield f"{horizon}: with model.ema_warmup the decay reaches {reached:.4g}"
    else:
        yield f"{horizon}: the average stays near the first weights; lower it, or set model.ema_warmup true"
