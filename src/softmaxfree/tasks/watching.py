"""What is watched while a task trains: losses, weights, memory, and predictions that are all alike."""

import logging
import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from softmaxfree.errors import InputError
from softmaxfree.tasks.memory import tells_memory

__all__ = ["AbstractWatchedTask"]

_log = logging.getLogger(__name__)


class AbstractWatchedTask(LightningModule):
    """Stops where a loss or a weight is not finite or memory is short, and tells what is wrong with a validation."""

    model: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.train_loss = MeanMetric(nan_strategy="disable")  # others ask the device at each step
        self._unchecked: list[tuple[str, Tensor]] = []
        self.remark = ""
        """After a validation: what is wrong with all its predictions together, in one line; "" if nothing is."""

    @tells_memory
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients, as Lightning's; raises InputError where the device has too little memory."""
        super().backward(loss, *args, **kwargs)

    @tells_memory
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, as Lightning's; raises InputError where the device has too little memory."""
        super().optimizer_step(*args, **kwargs)

    def log_loss(self, loss: Tensor, batch_idx: int, num_images: int) -> None:
        """Log the loss of a training batch, and the rate.

        Whether losses are finite is looked at every `trainer.log_every_n_steps` steps, at the end of an epoch and
        before a checkpoint is written: at each step the device would be waited for.

        Args:
            loss: a scalar.
            batch_idx: number of the batch in its epoch.
            num_images: of the batch.

        Raises:
            InputError: a loss since the last look is not finite.
        """
        loss = loss.detach()
        self._unchecked.append((f"step {self.global_step} (epoch {self.current_epoch}, batch {batch_idx})", loss))
        trainer: Any = self.trainer  # whose type does not tell all
        if len(self._unchecked) >= max(trainer.log_every_n_steps, 1):
            self._check_losses()
        self.train_loss.update(loss, weight=loss.new_full((), num_images))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=num_images)
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        self.log("train/lr", loss.new_full((), rate, dtype=torch.float32), batch_size=num_images)
        self.log("loss", loss, prog_bar=True, batch_size=num_images)

    def on_validation_start(self) -> None:
        """Look at the losses since the last look; raises InputError if one is not finite."""
        self._check_losses()

    def on_train_epoch_end(self) -> None:
        """Look at the losses since the last look; raises InputError if one is not finite."""
        self._check_losses()

    def note(self, remark: str) -> None:
        """Take the remark of a validation; warn of it where no training follows or went before, which tells it last.

        Args:
            remark: a line, the same in all processes; "" if nothing is wrong.
        """
        trainer = self.trainer
        if trainer.sanity_checking:
            return
        if remark and trainer.state.fn != TrainerFn.FITTING and not trainer.global_step:
            self._tell(remark)
        self.remark = remark

    def _tell(self, line: str) -> None:
        if self.trainer.is_global_zero:
            _log.warning(line)

    def _check_losses(self) -> None:
        """Look at the losses since the last look."""
        if not self._unchecked:
            return
        places, losses = zip(*self._unchecked, strict=True)
        self._unchecked = []
        for place, loss in zip(places, torch.stack(losses).tolist(), strict=True):
            if not math.isfinite(loss):
                raise InputError(self._non_finite(f"the loss is {loss} at {place}"))

    def _check_weights(self) -> None:
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                raise InputError(self._non_finite(f"{name} is not finite after step {self.global_step}"))

    def _non_finite(self, what: str) -> str:
        kept = [path for c in self.trainer.checkpoint_callbacks if (path := getattr(c, "best_model_path", ""))]
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return f"{what}; {last}; try a lower model.lr or trainer.precision 32-true"
