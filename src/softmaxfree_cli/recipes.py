"""Recipes: found by name or path, and merged with their base. Needs no torch."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from softmaxfree_cli.errors import InputError

__all__ = [
    "SECTIONS",
    "Own",
    "find_recipe",
    "leaves",
    "own_values",
    "read_header",
    "read_recipe",
    "recipe_and_weights",
    "recipe_of",
    "recipes",
]

SECTIONS = ("run", "model", "data", "trainer")

_FOLDER = Path(__file__).parents[1] / "softmaxfree" / "recipes"
_CLASSES = ("task", "datamodule")
_GENERIC = ("classification", "detection", "segmentation")  # of data of one's own
_LARGE = ("ade20k_", "coco_", "imagenet_")  # of data that few have, on many GPUs


class Own(NamedTuple):
    """What files of one's own say."""

    values: dict[str, tuple[Any, str]]
    """What they set over their base, by key; each with its file."""
    whole: str
    """The file at the bottom that has no base; empty where that is a recipe of the package."""


def recipes() -> dict[str, str]:
    """Return the recipes of the package, each with the first line of its header; first those of data of one's own."""
    names = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    names.sort(key=lambda name: (name not in _GENERIC, name.startswith(_LARGE)))
    return {name: read_header(_FOLDER / f"{name}.yaml")[0] for name in names}


def read_header(path: Path) -> list[str]:
    """Return the comments at the top of a recipe, without their signs.

    Args:
        path: of the recipe.

    Returns:
        Lines; one empty line if it begins without.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return lines or [""]


def find_recipe(recipe: str, folder: Path = Path()) -> Path:
    """Return the file of a recipe.

    Args:
        recipe: a name, or a path to a YAML file.
        folder: from where the path leads.

    Returns:
        Its path, which need not exist if one was given.

    Raises:
        InputError: there is no such recipe, with the nearest names.
    """
    if recipe.endswith((".yaml", ".yml")):
        return folder / recipe
    path = _FOLDER / f"{recipe}.yaml"
    if not path.is_file():
        if (folder / recipe / "config.yaml").is_file():
            raise InputError(f"{recipe} is a run, not a recipe; its recipe is {Path(recipe) / 'config.yaml'}")
        if "/" in recipe:
            raise InputError(f"there is no folder {recipe}, and no recipe of that name")
        raise InputError(f"there is no recipe {recipe!r}; {_nearest(recipe)}")
    return path


def recipe_of(recipe: str) -> str:
    """Return what a run was trained by, where the folder of one is given in place of a recipe.

    Args:
        recipe: a recipe, or the folder of a run.

    Returns:
        The recipe, or the path of the run's `config.yaml`.

    Raises:
        InputError: it is a folder, but not of a run.
    """
    folder = Path(recipe)
    if not folder.is_dir() or recipe in recipes():
        return recipe
    if (folder / "config.yaml").is_file():
        return str(folder / "config.yaml")
    runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    there = f"; it holds the runs {', '.join(runs)}" if runs else ""
    raise InputError(f"{recipe} is a folder without config.yaml, so no run of `softmaxfree train`{there}")


def recipe_and_weights(recipe: str, checkpoint: str | None) -> tuple[str, str]:
    """Return by what weights are measured, and where they are.

    Args:
        recipe: a recipe, or the folder of a run.
        checkpoint: the weights; None takes those of the run.

    Returns:
        The recipe, and the checkpoint or the folder of the run.

    Raises:
        InputError: there is neither a checkpoint nor a run.
    """
    path = recipe_of(recipe)
    if checkpoint is None and path == recipe:
        find_recipe(recipe)
        raise InputError(f"--checkpoint is missing: {recipe} is a recipe; the folder of a run needs none")
    return path, recipe if checkpoint is None else os.path.expanduser(checkpoint)


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
    path = find_recipe(recipe, folder)
    if path.resolve() in above:
        raise InputError(f"{path} is its own base")
    content, base = _read(path)
    if base:
        content = _merged(read_recipe(base, path.parent, (*above, path.resolve())), content)
    if not above and (missing := [key for key in _CLASSES if not content.get(key)]):
        raise InputError(
            f"{path} has no {' and no '.join(missing)}: begin it with `base: NAME`, where NAME is the recipe that it "
            f"changes, such as {', '.join(_GENERIC)}; `softmaxfree recipes` lists all"
        )
    for section in SECTIONS:
        if not isinstance(content.get(section), dict | None):
            raise InputError(f"{path}: {section} must hold keys and values, got {content[section]!r}")
    return content


def own_values(recipe: str, folder: Path = Path()) -> Own:
    """Return what a recipe of one's own sets over the recipe of the package that it begins with.

    Args:
        recipe: a name of `softmaxfree/recipes`, or a path to a YAML file that `read_recipe` can read.
        folder: from where the path leads.

    Returns:
        The values; none of a recipe of the package.
    """
    path = find_recipe(recipe, folder)
    if path.parent == _FOLDER:
        return Own({}, "")
    content, base = _read(path)
    if not base:
        return Own({}, str(path))
    below = own_values(base, path.parent)
    values = {".".join(keys): (value, str(path)) for keys, value in leaves(content).items()}
    return Own({**below.values, **values}, below.whole)


def leaves(content: Mapping[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the values of a recipe that are no mappings, or empty ones.

    Args:
        content: of the recipe.
        above: keys that lead to it.

    Returns:
        The values, each by the keys that lead to it.
    """
    out: dict[tuple[str, ...], Any] = {}
    for key, value in content.items():
        out |= leaves(value, (*above, key)) if isinstance(value, Mapping) and value else {(*above, key): value}
    return out


def _read(path: Path) -> tuple[dict[str, Any], str | None]:
    """The content of one file, and its base."""
    import yaml
    from jsonargparse import get_loader

    try:
        content = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where} is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold the sections {', '.join(SECTIONS)}")
    base = content.pop("base", None)
    if not isinstance(base, str | None):
        raise InputError(f"{path}: base must be the name of a recipe or a path, got {base}")
    return content, base


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Dictionaries are merged, all else is replaced."""
    both = {
        key: _merged(base[key], top[key])
        for key in base.keys() & top.keys()
        if isinstance(base[key], dict) and isinstance(top[key], dict)
    }
    return {**base, **top, **both}


def _nearest(name: str) -> str:
    if close := difflib.get_close_matches(name, recipes()):
        return f"did you mean {' or '.join(close)}?"
    return "`softmaxfree recipes` lists them, and a file of yours ends in .yaml"
