"""Weights from files of any kind, read without running code that they may hold."""

import errno
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import timm.models
import torch
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.models.record import NAME, encode

__all__ = ["complete", "read_notes", "read_weights"]

_FIRST = "stages.0.embed.0.conv.weight"  # every backbone of ours has it
_TASK_PREFIX = "model."  # of `ClassificationTask.model` in a Trainer's checkpoint


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a model.

    Args:
        path: a `.safetensors`, a `.ckpt` of the Trainer, or a `.pth` of tensors and plain values, such as the
            released ones. Averaged weights (EMA) are taken where the file has them.

    Returns:
        The state dict, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, or cannot be read without running code.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
    path.open("rb").close()  # whatever fails after this is about the content
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, about files that it then refuses
            weights = timm.models.load_state_dict(str(path))
    except Exception as error:  # whatever a decoder makes of foreign bytes
        raise InputError(_refusal(path, error)) from error
    if path.suffix == ".ckpt":
        weights = {k.removeprefix(_TASK_PREFIX): v for k, v in weights.items() if k.startswith(_TASK_PREFIX)}
    if not weights or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise InputError(f"{path} holds no weights of a model")
    return complete(weights, read_notes(path))


def complete(weights: dict[str, Tensor], notes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights with a record of their solver, which files of version 0.1.0 have beside the weights.

    Args:
        weights: a state dict, of ours or of any model.
        notes: what `read_notes` says of the file.

    Returns:
        The weights; the same where there is nothing to add.
    """
    arguments = notes.get("model_args") or notes.get("hyper_parameters", {}).get("model_args") or {}
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if "solver" not in arguments:
        return weights
    prefixes = [name.removesuffix(_FIRST) for name in weights if name.endswith(_FIRST)]
    records = {f"{prefix}{NAME}": encode({"solver": arguments["solver"]}) for prefix in prefixes}
    return records | weights


def read_notes(path: str | Path) -> dict[str, Any]:
    """Read what a file that `read_weights` has read says beside its weights.

    Args:
        path: the file.

    Returns:
        The metadata of a `.safetensors`, everything in a `.ckpt`, nothing of any other file.
    """
    if Path(path).suffix == ".safetensors":
        with safetensors.safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    if Path(path).suffix == ".ckpt":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {}


def _refusal(path: Path, error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, pickle.UnpicklingError):
        code = re.search(r"GLOBAL ([\w.]+)", str(cause))
        return (
            f"{path} is refused: {code[1] if code else 'code'} would have to run to read it, and a file can "
            "hold any code. If you trust it, load it elsewhere and save its state dict alone"
        )
    return f"{path} cannot be read as weights ({type(cause).__name__}: {' '.join(str(cause).split())[:200]})"
