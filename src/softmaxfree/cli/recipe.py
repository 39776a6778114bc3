"""Recipes: found by name, merged with their base, and turned into task, data and trainer arguments."""

import difflib
import importlib.resources
import logging
import os
import pkgutil
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, get_loader
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar

from softmaxfree.cli.allocator import keep_freed_memory
from softmaxfree.cli.settings import AUTO, Setting, Settings, decide, take_autos
from softmaxfree.errors import InputError
from softmaxfree.tasks.stopping import SignalsOfTheCommand

__all__ = ["Job", "as_list", "class_of", "create_trainer", "load_job", "read_recipe"]

_SECTIONS = ("run", "model", "data", "trainer")
_SOME_CLASSES = 2


@dataclass(frozen=True)
class Job:
    """What a recipe describes, ready to run."""

    task: Any  # a LightningModule
    data: Any  # a LightningDataModule
    trainer: dict[str, Any]  # arguments of the Trainer
    seed: int
    patience: int | None  # epochs without a better score that end the run early
    settings: Settings  # what was given as options, and what was decided
    config: str  # the whole recipe with every default, as YAML


def load_job(
    recipe: str, overrides: Sequence[str], content: Mapping[str, Any] | None = None, *, training: bool = True
) -> Job:
    """Build what a recipe describes, with its seed set and what is "auto" decided.

    Args:
        recipe: a name of `softmaxfree/recipes`, or a path to a YAML file.
        overrides: `--section.key=value`, for any key of the recipe.
        content: what `read_recipe` returned, if it is to be another than it says now.
        training: whether a training follows; else what is "auto" in it is left undecided.

    Returns:
        The job.

    Raises:
        FileNotFoundError: the data is not there, and something follows from it.
        InputError: there is no such key, with the nearest names; or a value is not allowed.
    """
    content = read_recipe(recipe) if content is None else dict(content)
    classes = {key: class_of(recipe, content, key) for key in ("task", "datamodule")}
    content, overrides, autos, given = take_autos(content, overrides)
    for key in classes:
        del content[key]
    if "model.num_classes" in autos:  # until it is decided
        content["model"] = {**content["model"], "num_classes": _SOME_CLASSES}
    parser = _parser(**classes)
    try:
        config = parser.parse_args(["--recipe", yaml.safe_dump(content), *overrides])
    except ArgumentError as error:
        raise InputError(_explain(str(error), parser)) from error
    seed_everything(config.run.seed, workers=True, verbose=False)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.run.keep_memory:
        keep_freed_memory()
    data = classes["datamodule"](**_plain(config.data))
    settings = dict(given)
    if autos or AUTO in _plain(config.data).values():
        data.prepare_data()
        data.setup("fit" if training else "validate")
        for name, (value, why) in getattr(data, "decided", {}).items():
            config[f"data.{name}"] = value
            settings[f"data.{name}"] = Setting(value, f"auto: {why}")
        settings |= decide(autos, config, data, training)
    arguments = parser.instantiate(config)  # what they name by class path
    task = classes["task"](**_plain(arguments.model))
    del config["recipe"]
    names = {key: f"{cls.__module__}.{cls.__qualname__}" for key, cls in classes.items()}
    text = yaml.safe_dump(names) + parser.dump(config, skip_unset=False)
    return Job(task, data, _plain(arguments.trainer), config.run.seed, config.run.early_stopping, settings, text)


def _plain(section: Any) -> dict[str, Any]:
    return section.as_dict()


def class_of(recipe: str, content: Mapping[str, Any], key: str) -> type:
    """Return the class that a recipe names.

    Args:
        recipe: its name, for the message.
        content: of the recipe.
        key: "task" or "datamodule".

    Returns:
        The class.

    Raises:
        InputError: it names none.
    """
    try:
        return pkgutil.resolve_name(content[key])
    except (KeyError, ValueError, ImportError, AttributeError) as error:
        raise InputError(f"recipe {recipe}: task and datamodule must each name a class ({error})") from error


def create_trainer(arguments: dict[str, Any]) -> Trainer:
    """Return a Trainer that draws progress bars on a terminal only and does not tell what the machine lacks.

    Args:
        arguments: of the Trainer.

    Returns:
        The trainer.

    Raises:
        InputError: the arguments contradict each other or the machine.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "Checkpoint directory .* not empty")  # it holds config.yaml
    warnings.filterwarnings("ignore", ".*WeightAveraging callback, but loading")  # to validate the average
    warnings.filterwarnings("ignore", ".*does not have many workers")  # the data modules know what they need
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of Lightning's own code
    quiet = {"enable_model_summary": False, "enable_progress_bar": sys.stdout.isatty()}
    arguments = {**arguments, **{key: v for key, v in quiet.items() if arguments.get(key) is None}}
    callbacks = [*as_list(arguments.get("callbacks")), SignalsOfTheCommand()]
    if arguments["enable_progress_bar"]:
        callbacks.append(RichProgressBar(refresh_rate=arguments.get("log_every_n_steps") or 50))
    arguments["callbacks"] = callbacks
    cores, devices = os.cpu_count() or 1, str(arguments.get("devices"))
    if arguments.get("accelerator") == "cpu" and devices.isdigit() and int(devices) > cores:
        raise InputError(f"trainer.devices is {devices}, a process each, but there are {cores} CPU cores")
    for name, least in (("accumulate_grad_batches", 1), ("log_every_n_steps", 0), ("gradient_clip_val", 0)):
        if (given := arguments.get(name)) is not None and not given >= least:
            raise InputError(f"trainer.{name} must be {least} or more, got {given}")
    try:
        return Trainer(**arguments)
    except OSError:
        raise
    except Exception as error:  # it has many kinds for what it cannot use
        raise InputError(f"trainer: {error}") from error


def as_list(value: Any) -> list:
    """Return a list of what may be one thing, several, or None."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _parser(task: type[LightningModule], datamodule: type[LightningDataModule]) -> ArgumentParser:
    parser = ArgumentParser(prog="", exit_on_error=False, default_env=False, allow_abbrev=False)
    parser.add_argument("--recipe", action="config")
    parser.add_argument("--run.seed", type=int, default=42)
    parser.add_argument("--run.threads", type=PositiveInt | None, default=None)  # None: as many as torch takes
    parser.add_argument("--run.keep_memory", type=bool, default=False)  # do not return it to the system
    parser.add_argument("--run.early_stopping", type=PositiveInt | None, default=None)
    parser.add_class_arguments(task, "model", instantiate=False)
    parser.add_class_arguments(datamodule, "data", instantiate=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    parser.link_arguments("run.seed", "data.seed")
    return parser


def read_recipe(recipe: str, folder: Path = Path(), above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a recipe over that of its `base`, a name or a path from where the recipe is.

    Args:
        recipe: a name of `softmaxfree/recipes`, or a path to a YAML file.
        folder: from where the path leads.
        above: the recipes that this one is the base of.

    Returns:
        `task`, `datamodule`, and the sections `run`, `model`, `data` and `trainer`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: there is no such recipe, with the nearest names; or it is no recipe.
    """
    path = _find(recipe, folder)
    if path.resolve() in above:
        raise InputError(f"{path} is its own base")
    try:
        content = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold the sections {', '.join(_SECTIONS)}")
    base = content.pop("base", None)
    return _merged(read_recipe(base, path.parent, (*above, path.resolve())), content) if base else content


def _find(recipe: str, folder: Path) -> Path:
    if recipe.endswith((".yaml", ".yml")):
        return folder / recipe
    folder = Path(str(importlib.resources.files("softmaxfree") / "recipes"))
    path = folder / f"{recipe}.yaml"
    if not path.is_file():
        names = [file.stem for file in folder.glob("*.yaml")]
        raise InputError(f"there is no recipe {recipe!r}; {_nearest(recipe, names, names)}")
    return path


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Dictionaries are merged, all else is replaced."""
    both = {
        key: _merged(base[key], top[key])
        for key in base.keys() & top.keys()
        if isinstance(base[key], dict) and isinstance(top[key], dict)
    }
    return {**base, **top, **both}


def _explain(message: str, parser: ArgumentParser) -> str:
    """The parser's message in one line, with the nearest keys where a key is wrong."""
    message = " ".join(message.split())
    for pattern in (
        r"unrecognized arguments: (?:--)?(?P<key>[\w.]+)",
        r"Option '(?P<key>[\w.]+)' is not accepted",
        r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'",
    ):
        if found := re.match(pattern, message):
            key = ".".join(found.groupdict().values())
            keys = list(parser.get_defaults(skip_validation=True).keys())
            section = [k for k in keys if k.split(".")[0] == key.split(".")[0]]
            return f"unknown key {key}; {_nearest(key, keys, section or _SECTIONS)}"
    return message.replace("Parser key", "key")


def _nearest(name: str, names: Sequence[str], all_names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(all_names))}"
