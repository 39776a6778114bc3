"""What a run needs to be repeatable, and what it writes down."""

import math
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from softmaxfree.atomic import write_csv

__all__ = ["EpochRecord", "EpochSeed"]

_WORTH_TELLING = 60  # seconds


class EpochSeed(Callback):
    """Seeds each epoch by its number, so that a resumed run draws what an uninterrupted one would have drawn.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed Python, NumPy and torch, each process differently; tell a streamed source its epoch."""
        dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(trainer.current_epoch)
        number = trainer.current_epoch * trainer.world_size + trainer.global_rank
        seed_everything(self.seed + number, workers=True, verbose=False)


class EpochRecord(Callback):
    """Keeps a row of numbers an epoch, in the checkpoint and in a CSV file.

    Lightning's CSVLogger deletes the file of a run that is resumed; here the rows return with the checkpoint.

    Args:
        path: the CSV file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._validated = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._validated = time.perf_counter(), False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the numbers of the validation are new ones."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row and tell its essence."""
        kinds = ("train", "val") if self._validated else ("train",)
        metrics = {name: v.item() for name, v in trainer.callback_metrics.items() if name.split("/")[0] in kinds}
        seconds = round(time.perf_counter() - self._start, 3)
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": seconds, **metrics})
        if trainer.is_global_zero:
            write_csv(self.path, self.rows)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if math.isfinite(value))
        left = _time_to_go((trainer.max_epochs or 0) - trainer.current_epoch - 1, self.rows)
        pl_module.print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  {seconds:.1f} s{left}")
        sys.stdout.flush()  # so that a log file shows it at once

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the run that goes on."""
        self.rows = list(state_dict["rows"])  # a new list: who holds the old one keeps it


def _time_to_go(epochs: int, rows: list[dict[str, float]]) -> str:
    """How long the epochs that are left will take, by those that were."""
    seconds = epochs * median(row["seconds"] for row in rows)
    if epochs < 1 or seconds < _WORTH_TELLING:
        return ""
    return f", about {seconds / 60:.0f} min to go" if seconds < 3 * 3600 else f", about {seconds / 3600:.0f} h to go"
