"""Models of timm by name, with one clear error where there is none; and their arguments without files."""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from timm.models import parse_model_name, resolve_pretrained_cfg, split_model_name_tag
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

from softmaxfree.errors import InputError, NoWeightsError

__all__ = ["check_name", "check_start", "create_model", "first_line", "quiet_hub", "standalone"]

# arguments that say where weights come from; and the part of `pretrained_cfg_overlay` that says how images are prepared
_START = ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay")
_PREPARATION = ("input_size", "mean", "std", "interpolation", "crop_pct")


def create_model(name: str, **arguments: Any) -> Any:
    """Return `timm.create_model(name, **arguments)`.

    Args:
        name: of the model, ours included, or with a source, such as `local-dir:FOLDER`.
        **arguments: of the model.

    Returns:
        The model.

    Raises:
        InputError: timm has no such model, with the nearest names; the model has no such argument; or the weights to
            start from cannot be loaded.
    """
    check_name(name)
    check_start(arguments)
    try:
        with quiet_hub():
            return timm.create_model(name, **arguments)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        told = f"{name} has no argument {unknown[1]!r}" if unknown else str(error)
        raise InputError(f"model_args: {told}") from error
    except FileNotFoundError as error:
        raise InputError(f"model_args: the weights of {name} are not there: {first_line(error)}") from error
    except InputError:
        raise
    except Exception as error:  # without a network, each way to weights has its own
        if not arguments.get("pretrained"):
            raise
        why = f"the weights of {name} cannot be loaded: {first_line(error)}"
        raise NoWeightsError(f"model_args.pretrained: {why}", why) from error


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keeps to itself that the hub is asked again, two lines each time: the error at the end says it in one."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error that has several, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check_name(name: str) -> None:
    """Raises InputError, with the nearest names, where timm has no such model."""
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models())
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"name: timm has no model {name!r}{hint}")


def check_start(arguments: Mapping[str, Any]) -> None:
    """Refuse files of weights that are not there; timm itself prints that, and raises an error without a word.

    Args:
        arguments: of `timm.create_model`.

    Raises:
        InputError: there is no such file, or `pretrained_cfg_overlay` is no mapping.
    """
    config = arguments.get("pretrained_cfg")
    config = {**(config if isinstance(config, Mapping) else {}), **_overlay(arguments)}
    start = [arguments.get("checkpoint_path"), config.get("file") if arguments.get("pretrained") else None]
    for file in filter(None, start):
        if not Path(file).is_file():
            raise InputError(f"model_args: the weights to start from are not there: {file}")


def standalone(name: str, arguments: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return name and arguments that make the same architecture, prepared for the same images, from no file.

    Args:
        name: of a model, perhaps with a source.
        arguments: of `timm.create_model`.

    Returns:
        A name without a source, and the arguments without those that say where weights come from. What a source says
        of the architecture and of images is among them.

    Raises:
        InputError: there is no such model or source.
    """
    check_name(name)
    arguments = dict(arguments or {})
    source, identity = parse_model_name(name)
    config: Any = arguments.get("pretrained_cfg")
    if source:
        try:
            load = load_model_config_from_path if source == "local-dir" else load_model_config_from_hf
            config, name, saved = load(identity)
        except OSError as error:
            raise InputError(f"name: {name} is not there: {error}") from error
        arguments = {key: value for key, value in saved.items() if key != "num_classes"} | arguments
    base, tag = split_model_name_tag(name)
    given = resolve_pretrained_cfg(base, config or tag or None, dict(_overlay(arguments) or {})).to_dict()
    usual = resolve_pretrained_cfg(base, tag or None).to_dict()
    prepared = {key: given[key] for key in _PREPARATION if key in given and given[key] != usual.get(key)}
    arguments = {key: value for key, value in arguments.items() if key not in _START}
    return name, arguments | ({"pretrained_cfg_overlay": prepared} if prepared else {})


def _overlay(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    if not isinstance(overlay, Mapping):
        raise InputError(f"model_args.pretrained_cfg_overlay must be a mapping, got {overlay!r}")
    return overlay
