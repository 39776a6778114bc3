"""What a run or a checkpoint recorded, laid over a recipe: what was trained is what is used."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from softmaxfree.cli.recipe import class_of, read_recipe
from softmaxfree.cli.settings import AUTO
from softmaxfree.data.places import PLACES, same_place
from softmaxfree.data.splits import EVERY
from softmaxfree.errors import InputError
from softmaxfree.tasks.training import AbstractTask
from softmaxfree.weights import read_notes, read_record
from softmaxfree_cli.recipes import leaves

__all__ = ["SPLIT", "moved", "require_same", "resumed_recipe", "trained_names", "with_record", "with_split"]

SPLIT = "split.csv"
"""In the folder of a run: which file is of which split, where the run drew them."""

_Content = dict[str, Any]
_TAKEN_OUT = object()
_HARMLESS = (("data", "batch_size"), ("data", "num_workers"), ("model", "init_from"))
_OF_CHECKPOINT = ("name", "model_args", "detector_args", "head_args")
_TIED = ("solver", "landmark_grid")


def with_record(
    recipe: str, content: Mapping[str, Any], checkpoint: str, overrides: Sequence[str] = ()
) -> tuple[_Content, list[str]]:
    """Return a recipe whose model is that of a checkpoint, and whose images are prepared as the training did.

    Args:
        recipe: its name, for messages.
        content: of the recipe.
        checkpoint: a `.ckpt` of the Trainer, a folder of timm's `save_for_hf`, or other weights.
        overrides: options of the command.

    Returns:
        The content, and what it says now where the recipe said otherwise: `section.key old -> new`.

    Raises:
        InputError: the checkpoint is of another task.
    """
    path = Path(checkpoint)
    notes = read_notes(path / "model.safetensors" if (path / "model.safetensors").is_file() else path)
    if "hyper_parameters" in notes:
        record = read_record(path)
        if record.task != str(content.get("task", "")).rpartition(".")[2]:
            raise InputError(f"{checkpoint} is of {record.task}, the recipe {recipe} of {content.get('task')}")
        training = inspect.signature(AbstractTask).parameters  # which does not change what is measured
        model = {key: value for key, value in record.arguments.items() if key not in training}
        config, arguments = record.data_config, record.data_arguments
    elif "architecture" in notes:
        model_args = notes.get("model_args") or {}
        model_args = dict(json.loads(model_args) if isinstance(model_args, str) else model_args)
        classes = {"num_classes": model_args.pop("num_classes")} if "num_classes" in model_args else {}
        model = {"name": notes["architecture"], "model_args": model_args, **classes}
        config, arguments = notes.get("pretrained_cfg", {}), {}
    else:
        return dict(content), []
    content = {**content, "model": _without_start(content)}
    data_class = class_of(recipe, content, "datamodule")
    prepared = getattr(data_class, "preparation", ())
    if "input_size" in config:  # of files that do not tell the data module's own arguments
        arguments = {**config, "img_size": config["input_size"][-1], **arguments}
    data = {key: _plain(arguments[key]) for key in prepared if key in arguments}
    if "split" in inspect.signature(data_class).parameters:
        content = with_split(content, path.parent, overrides)
    sections = {"model": _plain(model), "data": data}
    changes = [
        f"{section}.{key} {content[section][key]} -> {value}"
        for section, new in sections.items()
        for key, value in new.items()
        if key in (content.get(section) or {})
        and _differs(_plain(content[section][key]), value)
        and key != "model_args"
    ]
    return {**content, **{key: {**(content.get(key) or {}), **new} for key, new in sections.items()}}, changes


def with_split(content: Mapping[str, Any], run_dir: Path, overrides: Sequence[str] = ()) -> _Content:
    """Return a recipe whose images are split as a run has split them, if it has and they are the same.

    Args:
        content: of the recipe.
        run_dir: folder of the run.
        overrides: options of the command; where they name other data, every image of these validates that has no
            split of its own.

    Returns:
        The content.
    """
    file, data = run_dir / SPLIT, content.get("data") or {}
    given = {keys[1] for option in overrides if (keys := keys_of(option))[0] == "data" and len(keys) > 1}
    other = bool(moved(run_dir, overrides)) and not data.get("source") and "source" not in given
    if "split" in given or not (other or file.is_file()):
        return dict(content)
    split = EVERY if other else str(file)
    return {**content, "data": {**data, "split": split}}


def moved(run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """Return which options name other data than those of a run: each as `key old -> new`.

    Args:
        run_dir: folder of the run.
        overrides: options.

    Returns:
        The changes; none where the run does not tell.
    """
    own = run_dir / "config.yaml"
    if not own.is_file():
        return []
    data = read_recipe(str(own)).get("data") or {}
    changes = []
    for option in overrides:
        section, *rest = keys_of(option)
        if section == "data" and rest and rest[0] in PLACES:
            old, new = data.get(rest[0]), option.partition("=")[2]
            if not same_place(old, new):
                changes.append(f"data.{rest[0]} {old} -> {new}")
    return changes


def require_same(run_dir: Path, config: str) -> None:
    """Refuse to go on with a finished run by another model or on other data: nothing would be trained by these.

    Args:
        run_dir: folder of the run.
        config: the whole recipe by which it would go on, as YAML.

    Raises:
        InputError: they differ from its `config.yaml`.
    """
    before, now = (leaves(yaml.safe_load(text)) for text in ((run_dir / "config.yaml").read_text("utf-8"), config))
    known = {str(run_dir / SPLIT), str((run_dir / SPLIT).resolve())}
    changes = [
        f"{'.'.join(keys)} {before[keys]} -> {value}"
        for keys, value in now.items()
        if keys in before
        and before[keys] != value
        and not (keys[0] == "data" and keys[1] in PLACES and same_place(before[keys], value))
        and keys[0] in ("model", "data")
        and keys not in _HARMLESS
        and keys[1] not in _OF_CHECKPOINT
        and not (keys == ("data", "split") and value in known)
    ]
    if changes:
        raise InputError(
            f"the run in {run_dir} is finished, and was not trained by what is given now: {', '.join(changes)}; "
            "`softmaxfree validate` measures it on other data, and a larger trainer.max_epochs goes on"
        )


def trained_names(checkpoint: str) -> list[str]:
    """Return the classes that weights were trained for, in the order of labels; empty where the file does not tell."""
    path = Path(checkpoint)
    notes = read_notes(path / "model.safetensors" if (path / "model.safetensors").is_file() else path)
    return [str(name) for name in notes.get("class_names") or notes.get("label_names") or ()]


def resumed_recipe(
    recipe: str, checkpoint: Path, overrides: Sequence[str] = ()
) -> tuple[_Content, _Content | None, list[str]]:
    """Return by what a run goes on: its own configuration, with what was edited in its recipe since it began.

    The model is built as the checkpoint says, without the files that the run started from.

    Args:
        recipe: a name, or a path to a YAML file, which may be gone.
        checkpoint: from which it goes on, in the folder of its run.
        overrides: options of the command, which come after edits.

    Returns:
        The content, that of the recipe as it is now (None if it is gone), and what there is to tell.

    Raises:
        FileNotFoundError: there is neither a configuration in the folder nor the recipe.
        InputError: recipe and run are of different tasks, or this is no checkpoint of a run.
    """
    if "hyper_parameters" not in read_notes(checkpoint):
        raise InputError(f"{checkpoint} is no checkpoint of `softmaxfree train` that a run could go on from")
    run_dir = checkpoint.parent
    own, kept = run_dir / "config.yaml", run_dir / "recipe.yaml"
    if not own.is_file():
        content = read_recipe(recipe)
        return {**content, "model": {**_without_start(content), **_model(checkpoint)}}, content, []
    content, tell = read_recipe(str(own)), []
    content["model"] = _without_start(content)
    now: _Content | None = None
    try:
        now = read_recipe(recipe)
    except FileNotFoundError as error:
        if Path(error.filename) != Path(recipe):  # but that of its base
            raise
        tell.append(f"{recipe} is gone; the run goes on by {own}")
    if now and class_of(recipe, now, "task") is not class_of(str(own), content, "task"):
        raise InputError(f"{recipe} is a recipe of {now.get('task')}, the run in {run_dir} is of {content['task']}")
    content["model"].update(_model(checkpoint))
    content = with_split(content, run_dir)
    if changes := moved(run_dir, overrides):
        tell.append(
            f"other data than when the run began: {', '.join(changes)}; images it was trained on may validate now, "
            "and its scores of before are of other images"
        )
    if now and kept.is_file():
        given = [keys_of(option) for option in overrides]
        edits = {k: v for k, v in _edits(read_recipe(str(kept)), now).items() if k not in given}
        tied = {k: v for k, v in edits.items() if k[:2] == ("model", "model_args") and len(k) > 2 and k[2] in _TIED}
        used = {k: v for k, v in edits.items() if k not in tied}
        for keys, value in used.items():
            _set(content, keys, value)
        if used:
            tell.append(f"edited since the run began, and used: {_settings_text(used)}")
        if tied:
            tell.append(
                f"edited since the run began, and not used, as the weights are tied to theirs: {_settings_text(tied)}"
            )
    elif now:
        others = {k: v for k, v in leaves(now).items() if _get(content, k) not in (v, _plain(v))}
        not_told = (("model", "name"), ("model", "model_args"), ("task",), ("datamodule",))
        others = {k: v for k, v in others.items() if k[:2] not in not_told}
        if others:
            tell.append(
                f"the run goes on by {own}; its recipe says otherwise, which is not used: {_settings_text(others)}"
            )
    return content, now, tell


def _model(checkpoint: Path) -> _Content:
    """The arguments of a task that say what its model is, where a checkpoint tells them."""
    arguments = read_record(checkpoint).arguments
    return {k: _plain(arguments[k]) for k in _OF_CHECKPOINT if k in arguments}


def _without_start(content: Mapping[str, Any]) -> _Content:
    """The arguments of the task without the weights that the run started from: the checkpoint has all."""
    return {key: value for key, value in (content.get("model") or {}).items() if key != "init_from"}


_Leaves = dict[tuple[str, ...], Any]


def _edits(before: _Content, now: _Content) -> _Leaves:
    """What was changed, added, or taken out."""
    old, new = leaves(before), leaves(now)
    for these, others in ((old, new), (new, old)):  # a section that one of them leaves empty changes nothing by itself
        for k in [k for k, v in these.items() if not v and any(k == other[: len(k)] != other for other in others)]:
            del these[k]
    return {k: v for k, v in new.items() if k not in old or old[k] != v} | {k: _TAKEN_OUT for k in old if k not in new}


def keys_of(option: str) -> tuple[str, ...]:
    """Return the path that an option `--section.key=value` sets."""
    return tuple(option.partition("=")[0].removeprefix("--").split("."))


def _set(content: _Content, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(content.get(key), dict):
            content[key] = {}
        content = content[key]
    if value is _TAKEN_OUT:
        content.pop(keys[-1], None)
    else:
        content[keys[-1]] = value


def _get(content: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _settings_text(leaves: _Leaves) -> str:
    return ", ".join(
        ".".join(keys) + (" back to its default" if value is _TAKEN_OUT else f" = {value}")
        for keys, value in leaves.items()
    )


def _differs(said: Any, value: Any) -> bool:
    """Whether a recipe says another value, and not that it is to be decided."""
    if isinstance(said, Mapping) and isinstance(value, Mapping):
        return any(_differs(said.get(key), value.get(key)) for key in said.keys() | value.keys())
    return said not in (value, AUTO)


def _plain(value: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
