"""Weights from files of any kind, read without running code that they may hold."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.models.creation import standalone
from softmaxfree.models.record import NAME, encode
from softmaxfree.printing import few
from softmaxfree.tensors import read_tensors, refusal

__all__ = ["Recorded", "complete", "read_model_config", "read_notes", "read_record", "read_weights", "require_finite"]

_FIRST = "stages.0.embed.0.conv.weight"  # every backbone of ours has it
_COMMON = "meta.pt"  # of Lightning's sharded checkpoints
_TASK_PREFIX = "model."  # of `ClassificationTask.model` in a Trainer's checkpoint


class Recorded(NamedTuple):
    """What a checkpoint of the Trainer says of its task; none of it needs another file.

    Attributes:
        task: name of the LightningModule.
        arguments: of that class.
        data_config: how images are prepared, in timm's words; of a dense task `size`, shorter and longer side, too.
        data_arguments: of the data module.
        class_names: in the order of labels; empty if unknown.
        epoch: in which the weights were saved, from 0.
    """

    task: str
    arguments: dict[str, Any]
    data_config: dict[str, Any]
    data_arguments: dict[str, Any]
    class_names: list[str]
    epoch: int


def read_record(path: str | Path) -> Recorded:
    """Read what a checkpoint of the Trainer says of its task.

    Args:
        path: a `.ckpt`.

    Returns:
        The record. Of files of version 0.1.0 what they have: where weights came from is left out.

    Raises:
        InputError: it is of no task.
    """
    notes = read_notes(path)
    if "hyper_parameters" not in notes or "task" not in notes:
        raise InputError(f"{path} is no checkpoint of `softmaxfree train`")
    arguments = dict(notes["hyper_parameters"])
    config = dict(notes.get("data_config") or {})
    of_timm = notes.get("of_timm", True)  # and of images
    if of_timm:
        arguments["name"], arguments["model_args"] = standalone(arguments["name"], arguments.get("model_args"))
    if of_timm and notes["task"] != "ClassificationTask" and "size" not in config:
        short = min(config["input_size"][1:])
        config["size"] = (short, max(4 * short, *config["input_size"][1:]))
        if detector := arguments.get("detector_args"):  # another size than that of the training
            arguments["detector_args"] = {k: v for k, v in detector.items() if k not in ("min_size", "max_size")}
    names = [str(name) for name in notes.get("class_names") or ()]
    data_arguments = dict(notes.get("datamodule_hyper_parameters") or {})
    return Recorded(notes["task"], arguments, config, data_arguments, names, int(notes["epoch"]))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a model.

    Args:
        path: a `.safetensors`, a `.ckpt` of the Trainer, or a `.pth` of tensors and plain values, such as the
            released ones. Averaged weights (EMA) are taken where the file has them.

    Returns:
        The state dict, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it holds no weights, or such as are not finite, or cannot be read without running code.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
    path.open("rb").close()  # whatever fails after this is about the content
    weights = read_tensors(path)
    if path.suffix == ".ckpt":
        weights = {k.removeprefix(_TASK_PREFIX): v for k, v in weights.items() if k.startswith(_TASK_PREFIX)}
    if not weights or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise InputError(f"{path} holds no weights of a model")
    require_finite(weights, path)
    return complete(weights, read_notes(path))


def require_finite(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights with nan or inf, of which every result would be nan; -inf stands in masks of attention.

    Args:
        weights: a state dict.
        path: where it is from.

    Raises:
        InputError: some are not finite.
    """
    floats = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    if wrong := [name for name, weight in floats.items() if (weight.isnan() | weight.isposinf()).any()]:
        raise InputError(
            f"{path} has values that are not finite in {few(wrong)}: a training that diverged, or a damaged file"
        )


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
        The metadata of a `.safetensors`, or the `config.json` beside it; everything in a `.ckpt`; nothing of any other
        file. Of a sharded checkpoint, which is a folder, what its processes have in common.
    """
    if (Path(path) / _COMMON).is_file():
        return torch.load(Path(path) / _COMMON, map_location="cpu", weights_only=True)
    if Path(path).suffix == ".safetensors":
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        config = Path(path).with_name("config.json")
        if "architecture" not in metadata and Path(path).name == "model.safetensors" and config.is_file():
            return read_model_config(config)
        return metadata
    if Path(path).suffix == ".ckpt" and Path(path).is_file():
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises what its parts raise
            raise InputError(refusal(Path(path), error)) from error
    return {}


def read_model_config(path: str | Path) -> dict[str, Any]:
    """Read the `config.json` of a folder of timm, by whoever wrote it.

    Args:
        path: the file.

    Returns:
        Its content, where a model of timm has its `architecture`.

    Raises:
        InputError: it is something else.
    """
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} must be a JSON object: {error!r}") from error
