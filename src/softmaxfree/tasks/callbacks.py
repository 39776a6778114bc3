"""What a run needs to be repeatable, and what it writes down."""

import csv
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from softmaxfree.atomic import atomic_write

__all__ = ["EpochRecord", "EpochSeed"]


class EpochSeed(Callback):
    """Seeds each epoch by its number, so that a resumed run draws what an uninterrupted one would have drawn.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed Python, NumPy and torch, each process differently."""
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

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row and tell its essence."""
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if "/" in name}
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "seconds": round(time.perf_counter() - self._start, 3),
            **dict(sorted(metrics.items())),
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            with atomic_write(self.path) as part, part.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                writer.writeheader()
                writer.writerows(self.rows)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        pl_module.print(f"epoch {row['epoch'] + 1}/{trainer.max_epochs}  {shown}  {row['seconds']:.1f} s")
        sys.stdout.flush()  # so that a log file shows it at once

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the run that goes on."""
        self.rows = list(state_dict["rows"])
