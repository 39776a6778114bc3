"""A classifier from any kind of checkpoint, and a dense task from that of a Trainer."""

import errno
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.data.model_config import resolve_input_data_config
from torch import nn

from softmaxfree.cli.models import find_models
from softmaxfree.errors import InputError, NoWeightsError
from softmaxfree.images import natural_key, resized_shape
from softmaxfree.models.conversion import arguments_for
from softmaxfree.models.creation import first_line, quiet_hub
from softmaxfree.weights import read_model_config, read_notes, read_record, read_weights, require_finite

__all__ = ["Classifier", "LoadedTask", "find_checkpoint", "find_kind", "load_classifier", "load_task"]

_SHARDED = "meta.pt"  # in a checkpoint that is a folder, of a sharded run
_SMALLEST = 32  # pixels that a segmenter takes
_KINDS = ("classification", "detection", "segmentation", "bags")
_OF_BAGS = ("BagClassificationTask", "BagSurvivalTask")


class Classifier(NamedTuple):
    """A model in eval mode, how images are prepared for it (in timm's words), what its outputs are called.

    `loss` is that of the training: it tells what makes probabilities of the outputs.
    """

    model: nn.Module
    data_config: dict[str, Any]
    class_names: list[str]
    loss: str = "cross_entropy"


class LoadedTask(NamedTuple):
    """A LightningModule in eval mode, its kind, the sides of its images in training, what its classes are called."""

    task: Any
    kind: str
    size: tuple[int, int]
    class_names: list[str]

    def resized(self, height: int, width: int, short: int) -> list[int]:
        """Return height and width of an image whose shorter side becomes `short`; the longer one is at most as much
        longer as in training.
        """
        return list(resized_shape(height, width, (short, round(short * self.size[1] / self.size[0]))))


def find_checkpoint(path: str | Path) -> str:
    """Return the checkpoint of a run's folder; of anything else the path itself.

    Args:
        path: folder of a run, a checkpoint, or a folder of timm's `save_for_hf`.

    Returns:
        `best.ckpt` of a run, or else its `last.ckpt`, which is told on stderr.

    Raises:
        FileNotFoundError: there is nothing of that name, or the folder holds no checkpoint.
    """
    path = folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such checkpoint", str(path))
    if not folder.is_dir() or (folder / "config.json").is_file() or (folder / _SHARDED).is_file():
        return str(path)
    if (folder / "best.ckpt").exists():
        return str(folder / "best.ckpt")
    if (folder / "last.ckpt").exists():
        print(f"{path} has no best.ckpt: its last.ckpt is used", file=sys.stderr)
        return str(folder / "last.ckpt")
    if (folder / "config.yaml").is_file():
        raise FileNotFoundError(
            f"the run {path} has no checkpoint yet, neither best.ckpt nor last.ckpt: an epoch leaves the first"
        )
    runs = sorted(
        (run for run in folder.iterdir() if any((run / f"{name}.ckpt").exists() for name in ("best", "last"))),
        key=lambda run: natural_key(run.name),
    )
    if runs:
        raise FileNotFoundError(f"{path} holds runs and is none: name one of them, such as {runs[-1]}")
    raise FileNotFoundError(
        f"{path} has no config.json, best.ckpt or last.ckpt: it is neither a run's folder nor one of timm's save_for_hf"
    )


def find_kind(checkpoint: str | None) -> str:
    """Return the task that a checkpoint was trained for.

    Args:
        checkpoint: as `find_checkpoint` returns it; None is weights of timm.

    Returns:
        "classification", "detection", "segmentation" or "bags"; the first for weights that do not tell.

    Raises:
        InputError: the file cannot be read as a checkpoint, or is of a task that is none of ours.
        OSError: it cannot be opened.
    """
    if checkpoint is None:
        return _KINDS[0]
    try:
        task = read_notes(checkpoint).get("task", "ClassificationTask")
    except Exception:  # whatever a decoder makes of foreign bytes; the reader of weights says what it is
        read_weights(checkpoint)
        raise
    kind = "bags" if task in _OF_BAGS else str(task).removesuffix("Task").lower()
    if kind not in _KINDS:
        raise InputError(f"{checkpoint} is of {task}; allowed are those of {', '.join(_KINDS)}")
    return kind


def load_task(
    checkpoint: str | None,
    kind: str,
    size: int | None = None,
    *,
    window: int | None = None,
    overlap: float = 1 / 3,
    threshold: float = 0.5,
) -> LoadedTask:
    """Build a dense task with its weights.

    Args:
        checkpoint: a `.ckpt` of the Trainer.
        kind: "detection" or "segmentation".
        size: shorter side of images, pixels, in place of that of the training; the longer one in proportion.

        window: height and width of the windows that slide over an image to be segmented; None takes it whole.
        overlap: part of a window that the next one shares.
        threshold: score from which a detection counts.

    Returns:
        The task. A segmenter takes images as they come: neither size nor windows are those of its validation.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        InputError: it is not given, cannot be read safely, or is of another task; or the network needs larger images.
    """
    from softmaxfree.tasks import loading  # which takes seconds to import

    if checkpoint is None:
        raise InputError(f"--task {kind} needs --checkpoint, a .ckpt or a run's folder of `softmaxfree train`")
    task, record = loading.load_task(checkpoint, kind)
    short, long = record.data_config["size"]
    if kind == "segmentation":
        for option, side in (("--window", window), ("--size", size)):
            if side is not None and side < _SMALLEST:
                raise InputError(f"{option} must be {_SMALLEST} or more for a segmenter, got {side}")
        step = 1 if window is None else max(1, round(window * (1 - overlap)))
        sides = {} if window is None else {"window": (window, window), "stride": (step, step)}
        task.hparams.update(evaluation="slide" if sides else "whole", **sides)
    else:
        if size is not None:
            task.model.set_size(size, round(size * long / short))
        network = getattr(task.model.network, "roi_heads", task.model.network)
        network.score_thresh = min(network.score_thresh, threshold)  # else those below its own are never seen
    names = record.class_names or [str(i) for i in range(record.arguments["num_classes"])]
    return LoadedTask(task, kind, (short, long), names)


def load_classifier(checkpoint: str | None, model: str | None, size: int | None = None) -> Classifier:
    """Build a classifier with its weights.

    Args:
        checkpoint: a `.ckpt` of the Trainer, a `.safetensors` or `.pth` of weights, or a folder of timm's
            `save_for_hf`; None takes the weights that timm knows for `model`.
        model: name of the model, where the checkpoint does not tell.
        size: height and width of images, pixels, in place of those of the training.

    Returns:
        The classifier. Where the checkpoint names no classes, they are called by their numbers.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        InputError: it cannot be read safely, names no model, or is of another model; or the model needs larger images.
    """
    net: Any = _load(checkpoint, model)
    config = resolve_input_data_config(net)
    if size is not None:
        if size < (smallest := getattr(net, "min_img_size", 1)):
            raise InputError(f"--size must be {smallest} or more for this model, got {size}")
        config["input_size"] = (config["input_size"][0], size, size)
    names = net.pretrained_cfg.get("label_names") or range(net.num_classes)
    trained = read_notes(checkpoint).get("hyper_parameters", {}) if checkpoint else {}
    return Classifier(net.eval(), config, [str(name) for name in names], trained.get("loss", "cross_entropy"))


def _load(checkpoint: str | None, model: str | None) -> nn.Module:
    if checkpoint is None:
        if model is None:
            raise InputError("give --checkpoint PATH, or --model NAME for a model that timm has weights of")
        return _create(model, pretrained=True)
    folder = Path(checkpoint)
    sharded = (folder / _SHARDED).is_file()
    if folder.is_dir() and not sharded:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{checkpoint} has no config.json, so it is no folder of timm's save_for_hf")
        return _of_folder(folder, model)
    weights = {} if sharded else read_weights(checkpoint)
    name, arguments = _named_in(checkpoint)
    _agree(model, name, checkpoint)
    name = name or model
    if name is None:
        raise InputError(f"{checkpoint} does not name its model: give --model")
    arguments = arguments or arguments_for(name, weights)
    if "pretrained_cfg_overlay" not in arguments and (size := arguments.get("img_size")):
        size = (size, size) if isinstance(size, int) else tuple(size)
        arguments = {**arguments, "pretrained_cfg_overlay": {"input_size": (arguments.get("in_chans", 3), *size)}}
    net = _create(name, **arguments)
    if sharded:
        from softmaxfree.tasks.sharding import read_sharded

        weights = read_sharded(folder)
    try:
        net.load_state_dict(weights)
    except ValueError as error:  # of a network of this package, which tells why
        raise InputError(f"{checkpoint} does not fit {name}: {error}") from error
    except RuntimeError as error:
        raise InputError(f"{checkpoint} does not fit {name}: {_differences(weights, net.state_dict())}") from error
    return net


def _differences(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "not of the model": [name for name in weights if name not in expected],
        "of another shape": [n for n, w in weights.items() if n in expected and w.shape != expected[n].shape],
    }
    return ", ".join(f"{len(names)} weights are {kind}, such as {names[0]}" for kind, names in kinds.items() if names)


def _of_folder(folder: Path, model: str | None) -> nn.Module:
    """The model of a folder of timm's, by whoever wrote it."""
    name = read_model_config(folder / "config.json").get("architecture")
    if not isinstance(name, str):
        raise InputError(f"{folder}/config.json must have the key architecture, the name of a model, got {name!r}")
    _agree(model, name, str(folder))
    try:
        net: Any = _create(f"local-dir:{folder}", pretrained=True)
        names = net.pretrained_cfg.get("label_names")
    except InputError as error:
        raise InputError(f"{folder} cannot be loaded as {name}: {first_line(error)}") from error
    except Exception as error:  # timm, torch and safetensors raise what they like at other people's files
        raise InputError(f"{folder} cannot be loaded as {name}: {type(error).__name__}: {first_line(error)}") from error
    require_finite(net.state_dict(), folder)
    if names and len(names) != net.num_classes:
        raise InputError(
            f"{folder}/config.json has {len(names)} label_names, but the model has {net.num_classes} classes"
        )
    return net


def _agree(given: str | None, told: str | None, checkpoint: str) -> None:
    if given and told and given.split(".")[0] != told.split(".")[0]:
        raise InputError(f"--model is {given}, but {checkpoint} is of {told}")


def _named_in(checkpoint: str) -> tuple[str | None, dict[str, Any]]:
    """Name and arguments of the model, where the file tells them."""
    notes = read_notes(checkpoint)
    if "architecture" in notes:
        arguments = notes.get("model_args") or {}
        return notes["architecture"], json.loads(arguments) if isinstance(arguments, str) else arguments
    if "hyper_parameters" not in notes:
        return None, {}
    record = read_record(checkpoint)
    if record.task != "ClassificationTask":
        raise InputError(f"{checkpoint} is of {record.task}: give --task {record.task.removesuffix('Task').lower()}")
    arguments = dict(record.arguments["model_args"])
    # how the training prepared its images, whatever the weights that it started from say
    overlay = {**arguments.get("pretrained_cfg_overlay", {}), **record.data_config, "label_names": record.class_names}
    arguments.update(num_classes=record.arguments["num_classes"], pretrained_cfg_overlay=overlay)
    return record.arguments["name"], arguments


def _create(name: str, **arguments: Any) -> nn.Module:
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        find_models(name)  # raises, with the nearest names
    try:
        with quiet_hub():
            return timm.create_model(name, **arguments)
    except FileNotFoundError as error:
        raise InputError(f"the weights of {name} are not there: {first_line(error)}") from error
    except NoWeightsError as error:
        raise error.on_command_line("--checkpoint") from error
    except RuntimeError as error:  # timm's for: no such architecture, no weights
        raise InputError(str(error)) from error
