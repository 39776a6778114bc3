"""Checkpoints: written whole, read without running code, and refused with a reason if they do not fit."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from softmaxfree.atomic import atomic_write
from softmaxfree.errors import InputError
from softmaxfree.tasks.sharding import is_sharded, read_sharded
from softmaxfree.weights import read_weights

__all__ = ["AtomicCheckpointIO", "KeptCheckpoint", "load_state", "load_weights", "rename_kept"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, then gives it the name; reads tensors and plain values only.

    Lightning's own writes to the system's temporary folder, from where the last step may be a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: state of model and trainer.
            path: the file.
            storage_options: not supported.

        Raises:
            OSError: it cannot be written; the file that was there before still is.
        """
        assert storage_options is None
        # Given a path, torch writes without Python and reports a full disk as a RuntimeError.
        with atomic_write(path) as part, part.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint; code in it never runs.

        Args:
            path: the file.
            map_location: as for `torch.load`.
            weights_only: not used.

        Returns:
            What was saved.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is no checkpoint, or one that needs code to run.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise InputError(f"{path} is no checkpoint that can be read safely: {_short(error)}") from error


class KeptCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint under one name: the best one, or the last.

    Lightning's own forgets its score when the folder was moved or copied, and when an argument of a resumed run is
    another; then it replaces the best checkpoint by a worse one. Of equal scores that of the lower `val/loss` is kept,
    and the later where there is none: the first weights to reach the highest in small data still change much.

    Args:
        folder: where it lies.
        name: of the file, without its suffix.
        monitor: the metric to have most of; None keeps the last one.
        at_epoch_end: whether it is saved at the end of an epoch, rather than after each validation.
    """

    def __init__(self, folder: Path, name: str, monitor: str | None = None, at_epoch_end: bool = True) -> None:
        super().__init__(
            folder,
            name,
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=at_epoch_end,
            enable_version_counter=False,
        )
        self.file = Path(folder) / f"{name}{self.FILE_EXTENSION}"
        self.best_loss = math.inf

    @property
    def state_key(self) -> str:
        """Its name in a checkpoint."""
        return f"{self.file.stem} checkpoint"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless no score of this epoch is known."""
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a score is the best so far, or equals it with a lower loss."""
        loss = float(trainer.callback_metrics.get("val/loss", -math.inf))
        equal = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        kept = loss <= self.best_loss if equal else super().check_monitor_top_k(trainer, current)
        if kept:
            self.best_loss = loss
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        return {**super().state_dict(), "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the score of a run that goes on, wherever that run lay before."""
        if not self.file.exists():  # the run was copied without it: any score is the best
            return
        self.best_loss = state_dict.get("best_loss", math.inf)  # not in those of earlier versions
        path, score = str(Path(self.dirpath or "") / self.file.name), state_dict["best_model_score"]
        moved = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path, "last_model_path": ""}
        super().load_state_dict({**state_dict, **moved, "best_k_models": {} if score is None else {path: score}})


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights into a model of timm; of a Trainer's checkpoint the averaged ones, if it has them.

    Args:
        model: the model.
        path: a `.ckpt` of the Trainer, sharded or not, a folder as `save_pretrained` writes it, a `.safetensors` or a
            `.pth`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read safely, or its weights are of another model or number of classes.
    """
    path = Path(path)
    if is_sharded(path):
        weights = read_sharded(path)
    else:
        weights = read_weights(path / "model.safetensors" if path.is_dir() else path)
    load_state(model, weights, str(path))


def load_state(model: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load weights into a model.

    Args:
        model: the model.
        weights: its state dict, perhaps.
        name: of their source, for the message.

    Raises:
        InputError: they are of another model or number of classes.
    """
    try:
        model.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{name} does not fit the model: {_short(error)}") from error


def _short(error: Exception) -> str:
    """Return the start of a message, which may list hundreds of weights."""
    text = " ".join(str(error).split())
    return text if len(text) < 400 else f"{text[:400]} ..."


def rename_kept(callbacks: dict[str, Any], monitor: str) -> None:
    """Give what version 0.1.0 kept of the best and the last checkpoint their present names.

    Args:
        callbacks: state of each in a checkpoint; changed.
        monitor: metric of the best.
    """
    for key in [key for key in callbacks if key.startswith("ModelCheckpoint{")]:
        name = {monitor: "best checkpoint", None: "last checkpoint"}.get(callbacks[key]["monitor"])
        if name is not None:
            callbacks.setdefault(name, callbacks.pop(key))
