"""Recipes: found by name, merged with their base, and turned into task, data and trainer arguments."""

import logging
import os
import pkgutil
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar

from softmaxfree.arguments import require
from softmaxfree.cli.allocator import keep_freed_memory
from softmaxfree.cli.device import num_processes
from softmaxfree.cli.settings import AUTO, OF_MACHINE, Setting, Settings, decide, of_files, take_autos
from softmaxfree.errors import InputError
from softmaxfree.tasks.stopping import SignalsOfTheCommand
from softmaxfree.tasks.training import AbstractTask
from softmaxfree_cli.keys import check_keys
from softmaxfree_cli.messages import in_plain_words
from softmaxfree_cli.recipes import Own, own_values, read_recipe

__all__ = ["Job", "as_list", "class_of", "create_trainer", "load_job", "read_recipe"]

_SOME_CLASSES = 2
_TYPED_LEVELS = 2  # of a key that the parser reads as numbers
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # without a point YAML takes it for a text


@dataclass(frozen=True)
class Job:
    """What a recipe describes, ready to run."""

    task: Any  # a LightningModule
    data: Any  # a LightningDataModule
    trainer: dict[str, Any]  # arguments of the Trainer
    seed: int
    patience: int | None  # epochs without a better score that end the run early
    settings: Settings  # what was given as options and in files of one's own, and what was decided
    rest: str  # the file of one's own that says all else; empty if it is a recipe of the package, or a run's
    config: str  # the whole recipe with every default, as YAML


def load_job(
    recipe: str,
    overrides: Sequence[str],
    content: Mapping[str, Any] | None = None,
    *,
    training: bool = True,
    known_classes: Sequence[str] = (),
) -> Job:
    """Build what a recipe describes, with its seed set and what is "auto" decided.

    Args:
        recipe: a name of `softmaxfree/recipes`, or a path to a YAML file.
        overrides: `--section.key=value`, for any key of the recipe.
        content: what `read_recipe` returned, if it is to be another than it says now.
        training: whether a training follows; else what is "auto" in it is left undecided.
        known_classes: of weights that are there, by which data of some of these classes are numbered.

    Returns:
        The job.

    Raises:
        FileNotFoundError: the data is not there, and something follows from it.
        InputError: there is no such key, with the nearest names; or a value is not allowed.
    """
    own = own_values(recipe) if content is None else Own({}, "")
    content = read_recipe(recipe) if content is None else dict(content)
    check_keys(content, overrides)
    classes = {key: class_of(recipe, content, key) for key in ("task", "datamodule")}
    content, left_out = _for_network(content, overrides, classes["task"])
    content, overrides, autos, given = take_autos(content, overrides)
    sections = {key: value for key, value in content.items() if key not in classes}
    if "model.num_classes" in autos:  # until it is decided
        sections["model"] = {**sections["model"], "num_classes": _SOME_CLASSES}
    parser = _parser(**classes)
    try:
        config = parser.parse_args(["--recipe", yaml.safe_dump(sections), *overrides])
    except ArgumentError as error:
        raise InputError(in_plain_words(str(error), content)) from error
    _type_nested(config, overrides)
    require(0 <= config.run.seed < 2**32, "run.seed", config.run.seed, "a whole number from 0 to 4294967295")
    seed_everything(config.run.seed, workers=True, verbose=False)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.run.keep_memory:
        keep_freed_memory()
    data = classes["datamodule"](**_plain(config.data))
    data.known_classes, data.processes = tuple(known_classes), num_processes(config.trainer)[1]
    settings = given | of_files(own.values, given) | left_out
    if {*autos} - {*OF_MACHINE} or AUTO in _plain(config.data).values():
        data.prepare_data()
        data.setup("fit" if training else "validate")
        for name, (value, why) in getattr(data, "decided", {}).items():
            config[f"data.{name}"] = value
            settings[f"data.{name}"] = Setting(value, f"auto: {why}")
    settings |= decide(autos, config, data, training)
    try:
        arguments = parser.instantiate(config)  # what they name by class path
    except ValueError as error:
        reason = re.search(r"^ *- (.+)", str(error), re.MULTILINE)
        raise InputError(f"trainer: {reason[1].strip() if reason else error}") from error
    task = classes["task"](**_plain(arguments.model))
    del config["recipe"]
    names = {key: f"{cls.__module__}.{cls.__qualname__}" for key, cls in classes.items()}
    text = yaml.safe_dump(names) + parser.dump(config, skip_unset=False)
    trainer, run = _plain(arguments.trainer), config.run
    return Job(task, data, trainer, run.seed, run.early_stopping, settings, own.whole, text)


def _for_network(
    content: dict[str, Any], overrides: Sequence[str], task: type[AbstractTask]
) -> tuple[dict[str, Any], Settings]:
    """A recipe without what is for its own network alone, where an option names another one; and what was left out."""
    model = content.get("model") or {}
    names = [option.partition("=")[2] for option in overrides if option.startswith("--model.name=")]
    shared = task.shared_arguments() if names and names[-1] != model.get("name") else None
    if shared is None:
        return content, {}
    arguments = model.get("model_args") or {}
    kept = {key: value for key, value in arguments.items() if key in shared}
    why = f"the recipe has it for {model.get('name')}"
    told = {f"model.model_args.{key}": Setting("left out", why) for key in arguments if key not in shared}
    return {**content, "model": {**model, "model_args": kept}}, told


def _type_nested(config: Any, overrides: Sequence[str]) -> None:
    """Reads options inside of a dict in a dict, such as `model.model_args.mixer_args.ratio`, which stayed texts."""
    for option in overrides:
        key, _, text = option.removeprefix("--").partition("=")
        *path, name = key.split(".")
        place = config
        for part in path:
            place = place.get(part) if hasattr(place, "get") else None
        if len(path) > _TYPED_LEVELS and isinstance(place, dict) and place.get(name) == text:
            place[name] = float(text) if _EXPONENT.fullmatch(text) else yaml.safe_load(text)


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
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, at every epoch
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of Lightning's own code
    warnings.filterwarnings("ignore", ".*IterableDataset. has .__len__. defined")  # workers share timm's shards
    warnings.filterwarnings("ignore", ".*smaller than the logging interval")  # what counts is logged by epochs
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


def run_settings(
    seed: int = 42,
    threads: PositiveInt | None = None,
    keep_memory: bool = False,
    early_stopping: PositiveInt | None = None,
) -> None:
    """What section `run` of a recipe takes.

    Args:
        seed: Seed of the first weights, the order of the images, the augmentation and the split.
        threads: Number of torch's threads in each process; null leaves the choice to torch.
        keep_memory: Whether freed memory is kept for the next step rather than returned to the system.
        early_stopping: Number of epochs without a better score after which the run ends; only the second half of the
            epochs counts; null turns it off.
    """


def _parser(task: type[LightningModule], datamodule: type[LightningDataModule]) -> ArgumentParser:
    parser = ArgumentParser(prog="", exit_on_error=False, default_env=False, allow_abbrev=False)
    parser.add_argument("--recipe", action="config")
    parser.add_function_arguments(run_settings, "run")
    parser.add_class_arguments(task, "model", instantiate=False)
    parser.add_class_arguments(datamodule, "data", instantiate=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    parser.link_arguments("run.seed", "data.seed")
    return parser
