"""How a run ends when a signal asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["SignalsOfTheCommand", "resumable"]


class SignalsOfTheCommand(Callback):
    """Leaves signals to who runs the Trainer, whose exception then ends the run where it is.

    Lightning's own handler for SIGTERM broadcasts to processes that may be in the middle of another collective, and
    waits; on Slurm it saves the middle of an epoch, from where no run goes on exactly.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the Trainer from installing its handlers."""
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the processes that the Trainer started, which else wait for this one."""
        launcher: Any = trainer.strategy.launcher
        if launcher is not None and not isinstance(exception, Exception):
            launcher.kill(signal.SIGTERM)


@contextmanager
def resumable(run_dir: Path, fold: bool = False) -> Iterator[None]:
    """Note on what ends a run early from where it can go on.

    Args:
        run_dir: the folder of the run.
        fold: whether it is one of several folds, which go on together.

    Yields:
        Nothing.
    """
    try:
        yield
    except BaseException as error:
        last = run_dir / "last.ckpt"
        error.add_note(
            f"--resume {run_dir.parent if fold else last} goes on from there"
            if last.is_file()
            else "there is no checkpoint to resume from: the first is written after an epoch"
        )
        raise
