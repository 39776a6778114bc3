"""A classifier from any kind of checkpoint, and a dense task from that of a Trainer."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.data.model_config import resolve_input_data_config
from torch import nn

from softmaxfree.cli.convert import arguments_for
from softmaxfree.cli.models import find_models
from softmaxfree.errors import InputError
from softmaxfree.weights import read_notes, read_weights

__all__ = ["Classifier", "LoadedTask", "load_classifier", "load_task"]

_STARTED_FROM = ("pretrained", "checkpoint_path")  # weights that those of a file replace


class Classifier(NamedTuple):
    """A model in eval mode, how images are prepared for it (in timm's words), what its outputs are called."""

    model: nn.Module
    data_config: dict[str, Any]
    class_names: list[str]


class LoadedTask(NamedTuple):
    """A LightningModule in eval mode, its kind, how its images are prepared, what its classes are called."""

    task: Any
    kind: str
    data_config: dict[str, Any]
    class_names: list[str]


def load_task(checkpoint: str | None, kind: str) -> LoadedTask:
    """Build a dense task with its weights.

    Args:
        checkpoint: a `.ckpt` of the Trainer.
        kind: "detection" or "segmentation".

    Returns:
        The task.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is not given, cannot be read safely, or is of another task.
    """
    from softmaxfree.tasks import DetectionTask, SegmentationTask  # which take seconds to import

    if checkpoint is None:
        raise InputError(f"--task {kind} needs --checkpoint, a .ckpt of `softmaxfree train`")
    weights = read_weights(checkpoint)
    notes = read_notes(checkpoint)
    found = {"detection": DetectionTask, "segmentation": SegmentationTask}[kind]
    if notes.get("task") != found.__name__:
        raise InputError(f"--task {kind} needs a checkpoint of such a task, but {checkpoint} is of {notes.get('task')}")
    arguments = dict(notes["hyper_parameters"])
    model_args = arguments["model_args"] or {}
    arguments["model_args"] = {key: value for key, value in model_args.items() if key not in _STARTED_FROM}
    task = found(**arguments)
    task.model.load_state_dict(weights)
    return LoadedTask(task.eval(), kind, notes["data_config"], [str(name) for name in notes["class_names"]])


def load_classifier(checkpoint: str | None, model: str | None) -> Classifier:
    """Build a classifier with its weights.

    Args:
        checkpoint: a `.ckpt` of the Trainer, a `.safetensors` or `.pth` of weights, or a folder of timm's
            `save_for_hf`; None takes the weights that timm knows for `model`.
        model: name of the model, where the checkpoint does not tell.

    Returns:
        The classifier. Where the checkpoint names no classes, they are called by their numbers.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read safely, names no model, or is of another model.
    """
    net: Any = _load(checkpoint, model)
    names = net.pretrained_cfg.get("label_names") or range(net.num_classes)
    return Classifier(net.eval(), resolve_input_data_config(net), [str(name) for name in names])


def _load(checkpoint: str | None, model: str | None) -> nn.Module:
    if checkpoint is None:
        if model is None:
            raise InputError("give --checkpoint PATH, or --model NAME for a model that timm has weights of")
        return _create(model, pretrained=True)
    if Path(checkpoint).is_dir():
        if not Path(checkpoint, "config.json").is_file():
            raise FileNotFoundError(f"{checkpoint} has no config.json, so it is no folder of timm's save_for_hf")
        return _create(f"local-dir:{checkpoint}", pretrained=True)
    weights = read_weights(checkpoint)
    name, arguments = _told(checkpoint)
    if name and model and name != model:
        raise InputError(f"--model is {model}, but {checkpoint} is of {name}")
    name = name or model
    if name is None:
        raise InputError(f"{checkpoint} does not name its model: give --model")
    arguments = arguments or arguments_for(name, weights)
    if size := arguments.get("img_size"):
        overlay = {"input_size": (arguments.get("in_chans", 3), size, size)}
        arguments = {"pretrained_cfg_overlay": overlay, **arguments}
    net = _create(name, **arguments)
    try:
        net.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{checkpoint} does not fit {name}: {str(error)[:300]}") from error
    return net


def _told(checkpoint: str) -> tuple[str | None, dict[str, Any]]:
    """Name and arguments of the model, where the file tells them."""
    notes = read_notes(checkpoint)
    if "architecture" in notes:
        return notes["architecture"], json.loads(notes.get("model_args", "{}"))
    if task := notes.get("hyper_parameters"):
        if notes.get("task") != "ClassificationTask":
            raise InputError(f"{checkpoint} is of {notes.get('task')}: give --task detection or --task segmentation")
        overlay = {**notes.get("data_config", {}), "label_names": notes.get("class_names")}
        arguments = {
            "num_classes": task["num_classes"],
            "pretrained_cfg_overlay": overlay,
            **(task["model_args"] or {}),
        }
        return task["name"], {key: value for key, value in arguments.items() if key not in _STARTED_FROM}
    return None, {}


def _create(name: str, **arguments: Any) -> nn.Module:
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        find_models(name)  # raises, with the nearest names
    try:
        return timm.create_model(name, **arguments)
    except RuntimeError as error:  # timm's for: no such architecture, no weights
        raise InputError(str(error)) from error
