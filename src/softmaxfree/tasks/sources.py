"""Weights to start from: of a run, a file, a folder or a hub, with what is known of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import Tensor

from softmaxfree.errors import InputError, NoWeightsError
from softmaxfree.models.creation import check_name, create_model
from softmaxfree.tasks.sharding import is_sharded, read_sharded
from softmaxfree.weights import read_model_config, read_notes, read_weights

__all__ = ["Source", "read_source"]

_LOCAL = "local-dir:"
_FILES = ("best.ckpt", "last.ckpt", "model.safetensors", "pytorch_model.bin")  # of a folder, the first that is there


class Source(NamedTuple):
    """Weights and what is known of them.

    Attributes:
        where: they are from, in words.
        weights: a state dict.
        model: name of the model; "" if unknown.
        num_classes: of their head; None if unknown.
        class_names: in the order of labels; empty if unknown.
    """

    where: str
    weights: dict[str, Tensor]
    model: str
    num_classes: int | None
    class_names: list[str]


def read_source(given: str) -> Source:
    """Read weights to start from; code in a file never runs, and nothing is downloaded but what a name asks for.

    Args:
        given: folder of a run, a `.ckpt` (a folder where it is sharded), a folder of timm's `save_for_hf`, a file of
            weights such as a `.pth` or `.safetensors`, or a name of timm such as `resnet18.a1_in1k`,
            `hf-hub:OWNER/NAME` or `local-dir:FOLDER`.

    Returns:
        The weights.

    Raises:
        InputError: there is no such thing, or it cannot be read.
    """
    path = Path(given.removeprefix(_LOCAL)).expanduser()
    if path.exists():
        return _of_file(_within(path))
    if given.startswith(_LOCAL) or not (":" in given or timm.is_model(given.split(".")[0])):
        raise InputError(
            f"model.init_from: there is no {path}; it may be the folder of a run, a checkpoint, a file or folder of "
            "weights, `pretrained`, or the name of a model that timm has weights of"
        )
    try:
        check_name(given)
        net = create_model(given, pretrained=True)
    except NoWeightsError as error:
        raise InputError(f"model.init_from: {error.on_command_line('--init-from')}") from error
    except InputError as error:
        raise InputError(f"model.init_from: {error}") from error
    names = [str(name) for name in net.pretrained_cfg.get("label_names") or ()]
    name = str(net.pretrained_cfg.get("architecture") or given)
    return Source(given, net.state_dict(), name, net.num_classes, names)


def _within(path: Path) -> Path:
    """The file of weights in a folder, or the path itself."""
    if not path.is_dir() or is_sharded(path):
        return path
    if found := next((path / name for name in _FILES if (path / name).exists()), None):
        return found
    held = ", ".join(sorted(inner.name for inner in path.iterdir())[:8]) or "nothing"
    raise InputError(f"model.init_from: the folder {path} has none of {', '.join(_FILES)}; it holds {held}")


def _of_file(path: Path) -> Source:
    try:
        weights = read_sharded(path) if is_sharded(path) else read_weights(path)
    except InputError as error:
        raise InputError(f"model.init_from: {error}") from error
    notes = read_notes(path)
    if path.name == "pytorch_model.bin" and (config := path.with_name("config.json")).is_file():
        notes = read_model_config(config)
    arguments = notes.get("hyper_parameters") or _plain(notes.get("model_args"))
    names = [str(name) for name in notes.get("class_names") or notes.get("label_names") or ()]
    classes = notes.get("num_classes", arguments.get("num_classes")) or len(names) or None
    return Source(str(path), weights, str(notes.get("architecture") or arguments.get("name") or ""), classes, names)


def _plain(arguments: Any) -> Mapping[str, Any]:
    return json.loads(arguments) if isinstance(arguments, str) else arguments or {}
