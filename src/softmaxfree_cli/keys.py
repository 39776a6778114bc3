"""The keys of a recipe, read from the sources of its classes: told in help, and checked before torch is there."""

import ast
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from softmaxfree_cli.errors import InputError
from softmaxfree_cli.recipes import SECTIONS
from softmaxfree_cli.source import arguments, find, read
from softmaxfree_cli.words import default_of, type_in_words

__all__ = ["REQUIRED", "Key", "check_keys", "keys_of"]

REQUIRED = object()

_CLOSE = 0.7  # likeness from which a key may have been meant
_TRAINER = {  # in place of Lightning's words, where these are hard to read alone
    "accelerator": "Where to train: cpu, gpu, mps or another of Lightning's; auto takes a GPU if there is one.",
    "strategy": "How several processes share the training, such as ddp or fsdp; auto chooses.",
    "devices": "Number of devices, or a list of their numbers; auto takes those that there are.",
    "num_nodes": "Number of machines that train together.",
    "precision": "Numbers of the computation: null is 32 bits; `bf16-mixed` and `16-mixed` are quicker on GPUs.",
    "logger": "Loggers by class path, one or several; null writes a TensorBoard log, false none.",
    "callbacks": "Callbacks by class path, one or several; null for none but the run's own.",
    "fast_dev_run": "Number of batches of a trial run, which keeps nothing; true for one batch, false for a real run.",
    "max_steps": "Number of updates after which the training ends; -1 for no limit.",
    "limit_train_batches": "Number of training batches in an epoch, or as a fraction their part; null for all.",
    "limit_val_batches": "Number of batches in a validation, or as a fraction their part; null for all, 0 for none.",
    "overfit_batches": "Number of training batches, or as a fraction their part, that alone are used; 0.0 for all.",
    "val_check_interval": "Number of batches, or as a fraction the part of an epoch, from one validation to the next.",
    "check_val_every_n_epoch": "Number of epochs from one validation to the next.",
    "num_sanity_val_steps": "Number of validation batches that are tried before the training.",
    "log_every_n_steps": "Number of steps from one entry of the log to the next.",
    "enable_progress_bar": "Whether progress bars are shown; null shows them on a terminal only.",
    "enable_model_summary": "Whether a table of the model's layers is printed; null prints none.",
    "accumulate_grad_batches": "Number of batches whose gradients are averaged for one step of the optimizer.",
    "deterministic": "Whether results repeat exactly, at some cost; `warn` warns of operations that cannot.",
    "gradient_clip_val": "Largest norm of the gradient, above which it is scaled down; null for no limit.",
}
_COMMON = {  # what other programs call a key
    "model.learning_rate": "model.lr",
    "model.pretrained": "model.init_from",
    "trainer.epochs": "trainer.max_epochs",
    "trainer.num_epochs": "trainer.max_epochs",
    "data.batch": "data.batch_size",
    "data.image_size": "data.img_size",
    "data.workers": "data.num_workers",
    "run.patience": "run.early_stopping",
}
_PRINTING = ("print_config", "print_shtab", "config", "cfg", "show", "list")


class Key(NamedTuple):
    """What may be set in a recipe."""

    type: str
    default: Any
    """`REQUIRED` if it has none."""
    meaning: str


def keys_of(content: Mapping[str, Any]) -> dict[str, dict[str, Key]]:
    """Return what may be set in a recipe.

    Args:
        content: of the recipe.

    Returns:
        Keys by section and name; a section is missing where the source of its class cannot be read.
    """
    classes = {
        "run": "softmaxfree.cli.recipe.run_settings",
        "model": content.get("task"),
        "data": content.get("datamodule"),
        "trainer": "lightning.pytorch.Trainer",
    }
    found = {section: _of_class(str(name)) for section, name in classes.items()}
    known = {section: dict(keys) for section, keys in found.items() if keys is not None}
    known.get("data", {}).pop("seed", None)  # the parser takes it from run.seed
    if trainer := known.get("trainer"):
        words = {name: _TRAINER.get(name) or _first_sentence(key.meaning) for name, key in trainer.items()}
        known["trainer"] = {name: key._replace(meaning=words[name]) for name, key in trainer.items()}
    for section, name in (path.split(".") for path in _decided()):
        if key := known.get(section, {}).get(name):
            meaning = f"{key.meaning} `auto` decides it by {'the machine' if name == 'precision' else 'the data'}."
            known[section][name] = key._replace(type=f"{key.type} or auto", meaning=meaning)
    return known


def check_keys(
    content: Mapping[str, Any], overrides: Sequence[str], options: Sequence[str] = (), *, complete: bool = False
) -> None:
    """Refuse keys that there are not, all at once.

    Args:
        content: of a recipe.
        overrides: `--section.key=value`.
        options: of the command itself, such as `--out`, one of which may have been meant.
        complete: refuse a recipe that leaves out what must be given, too.

    Raises:
        InputError: there are unknown keys, with the nearest of all keys; or some are missing.
    """
    known = keys_of(content)
    if words := [override for override in overrides if not override.startswith("--")]:
        raise InputError(f"unexpected {words[0]!r}: the keys of a recipe are options, such as --model.lr 0.001")
    in_file = list(_paths(content))
    told = [override.partition("=")[0].removesuffix("+") for override in overrides]
    unknown = dict.fromkeys(key for key in (*in_file, *told) if not _is_known(key.removeprefix("--"), known))
    if unknown:
        nested = [path for path in in_file if path.count(".") > 1]
        lines = [f"unknown key {key}; {_nearest(key, known, nested, options)}" for key in unknown]
        raise InputError(" ".join(lines))
    given = {*in_file, *(key.removeprefix("--") for key in told)}
    missing = [
        f"--{section}.{name} ({key.meaning.rstrip('.')})"
        for section, keys in known.items()
        for name, key in keys.items()
        if complete and key.default is REQUIRED and not {section, f"{section}.{name}"} & given
    ]
    if missing:
        raise InputError(f"required: {', '.join(missing)}")


@cache
def _decided() -> list[str]:
    """Keys of model, trainer and run that may be "auto", whatever their type: the rules of `softmaxfree train`."""
    found = find(read("softmaxfree.cli.settings"), "_RULES")
    rules = getattr(found[1], "value", None) if found else None
    assert isinstance(rules, ast.Dict), "softmaxfree.cli.settings has no _RULES"
    return [ast.literal_eval(key) for key in rules.keys if key is not None]


def _first_sentence(text: str) -> str:
    """Of Lightning's text, which tells all in many, the first sentence, with the values as YAML has them."""
    first = re.split(r"(?<=\.) +(?=[A-Z`])", text)[0].rstrip(".") + "."
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        first = re.sub(rf"\b{python}\b", yaml, first)
    return first


@cache
def _of_class(name: str) -> dict[str, Key] | None:
    found = arguments(name)
    if found is None:
        return None
    return {
        key: Key(
            type_in_words(a.annotation, a.where),
            REQUIRED if a.default is None else default_of(a.default, a.where),
            a.meaning,
        )
        for key, a in found.items()
    }


def _nearest(key: str, known: Mapping[str, Mapping[str, Key]], nested: Sequence[str], options: Sequence[str]) -> str:
    """The end of a message: which keys, or options of the command, may have been meant."""
    dashes, wanted = "--" * key.startswith("--"), key.removeprefix("--").replace("-", "_")
    if wanted in _PRINTING:
        return "`softmaxfree recipes show RECIPE` prints a whole recipe"
    if wanted in ("task", "datamodule"):
        return "a class is named in a recipe file only"
    names = [f"{section}.{name}" for section, keys in known.items() for name in keys] + list(nested)
    names += [option.removeprefix("--") for option in options if dashes]
    scores = {name: _likeness(wanted, name.replace("-", "_")) for name in names}
    for name, own in _COMMON.items():
        if own in scores:
            scores[own] = max(scores[own], _likeness(wanted, name))
    best = max(scores.values(), default=0)
    if best >= _CLOSE:
        close = sorted((n for n in names if scores[n] >= max(_CLOSE, best - 0.1)), key=lambda n: -scores[n])
        return f"did you mean {' or '.join(dashes + name for name in close[:3])}?"
    section = wanted.partition(".")[0]
    if section in known:
        return f"there are {', '.join(sorted(f'{section}.{name}' for name in known[section]))}"
    return f"the sections are {', '.join(SECTIONS)}; `softmaxfree train RECIPE --help` lists every key"


def _paths(content: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the content, and those one below."""
    for top, section in content.items():
        if top in ("task", "datamodule"):
            continue
        if not isinstance(section, dict) or (not section and top not in SECTIONS):
            yield from () if top in SECTIONS else (top,)
            continue
        for name, value in section.items():
            yield f"{top}.{name}"
            yield from (f"{top}.{name}.{inner}" for inner in (value if isinstance(value, dict) else ()))


def _is_known(key: str, known: Mapping[str, Mapping[str, Key]]) -> bool:
    section, _, rest = key.partition(".")
    if section not in SECTIONS:
        return False
    return section not in known or not rest or rest.partition(".")[0] in known[section]


def _likeness(wanted: str, name: str) -> float:
    """From 0 to 1, by the whole path or, where the section is left out or another, by its end."""
    end = name.rpartition(".")[2]
    last = wanted.rpartition(".")[2]
    whole = difflib.SequenceMatcher(None, wanted, name).ratio()
    by_end = difflib.SequenceMatcher(None, last, end).ratio()
    return max(whole if "." in wanted else 0, by_end - 0.05 * (wanted.partition(".")[0] != name.partition(".")[0]))
