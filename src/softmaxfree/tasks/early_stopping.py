"""Stopping a run that no longer improves."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from softmaxfree.arguments import require_whole
from softmaxfree.errors import InputError

__all__ = ["LateEarlyStopping"]

_OFF = "; run.early_stopping null turns it off"


class LateEarlyStopping(EarlyStopping):
    """Lightning's early stopping in the second half of the epochs, whose best score is that of this half.

    In the first half the rate is high and scores are noisy: a lucky early one would end a run that still improves. An
    equal score with a lower `val/loss` is a better one, as for the checkpoint that is kept.

    Args:
        monitor: the metric to have most of.
        patience: epochs without a better score that end the run.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        require_whole("run.early_stopping", patience, 1)
        super().__init__(monitor, mode="max", check_finite=False)  # an average precision may be nan
        self.epochs = patience
        self._best_epoch, self._best_loss = 0, math.inf

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Turn epochs into validations.

        Args:
            trainer: tells how many epochs there are, and after how many of them it validates.
            pl_module: not used.
            stage: what the Trainer is about to do.

        Raises:
            InputError: the run has no validation, or no number of epochs.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if trainer.limit_val_batches == 0:
            raise InputError(f"run.early_stopping needs a validation, but trainer.limit_val_batches is 0{_OFF}")
        if not trainer.max_epochs or trainer.max_epochs < 0:
            raise InputError(
                f"run.early_stopping leaves out the first half of trainer.max_epochs, which is {trainer.max_epochs}: "
                f"give it a number, 1 or more{_OFF}"
            )
        every = trainer.check_val_every_n_epoch
        if every is None or trainer.val_check_interval != 1.0:
            raise InputError(
                "run.early_stopping needs one validation an epoch: leave out trainer.val_check_interval, and give "
                f"trainer.check_val_every_n_epoch a number{_OFF}"
            )
        self.patience = math.ceil(self.epochs / every)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a run that goes on knows; its patience is that of now."""
        self._best_epoch, self._best_loss = state_dict["best_epoch"], state_dict.get("best_loss", math.inf)
        super().load_state_dict({**state_dict, "patience": self.patience})

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        return {**super().state_dict(), "best_epoch": self._best_epoch, "best_loss": self._best_loss}

    def _should_skip_check(self, trainer: Trainer) -> bool:
        return super()._should_skip_check(trainer) or trainer.current_epoch < (trainer.max_epochs or 0) // 2

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        current, loss = (trainer.callback_metrics.get(name) for name in (self.monitor, "val/loss"))
        equal = current is not None and bool(current == self.best_score)
        if equal and loss is not None and float(loss) < self._best_loss:
            self.wait_count = -1  # which the check raises by one
        super()._run_early_stopping_check(trainer)
        if self.wait_count == 0:
            self._best_epoch, self._best_loss = trainer.current_epoch, math.inf if loss is None else float(loss)
        elif trainer.should_stop and self.wait_count >= self.patience:
            task: Any = trainer.lightning_module
            waited = trainer.current_epoch - self._best_epoch
            label, factor, digits = getattr(task, "summary", {}).get(self.monitor, (self.monitor, 1, 4))
            best = f"{factor * self.best_score.item():.{digits}f}"
            task.print(
                f"stopped after epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: in their second half "
                f"none was better than epoch {self._best_epoch + 1}, with {label} {best}, for {waited} epochs"
            )
