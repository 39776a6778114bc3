"""`softmaxfree recipes`: what can be trained, and by which settings."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from softmaxfree_cli.errors import InputError
from softmaxfree_cli.keys import REQUIRED, Key, keys_of
from softmaxfree_cli.recipes import SECTIONS, find_recipe, read_header, read_recipe, recipe_of, recipes
from softmaxfree_cli.words import columns, in_yaml

__all__ = ["commented", "run"]

_WIDTH = 110


def run(action: Literal["list", "show"] = "list", recipe: str | None = None, *, out: str | None = None) -> None:
    """List the recipes, or show one.

    Args:
        action: What to do: `list` names the recipes; `show` prints one, merged with its base, with every key that may
            be set and its meaning. What is printed is a recipe, which can be saved and changed.
        recipe: Recipe to show: a name, a YAML file, or the folder of a run.
        out: File to write the recipe to, which must not exist yet. By default it is printed.

    Raises:
        InputError: there is no such recipe, or none is named, or the file is there.

    Examples:
        softmaxfree recipes
        softmaxfree recipes show digits
        softmaxfree recipes show classification --out mine.yaml
    """
    if action == "list":
        if recipe or out:
            raise InputError("`softmaxfree recipes show RECIPE` shows one; the list takes no arguments")
        print(columns({name: f"{_kind(name):14}  {line}" for name, line in recipes().items()}))
        return
    if recipe is None:
        raise InputError("which recipe? `softmaxfree recipes show RECIPE`; `softmaxfree recipes` lists them")
    text = commented(recipe)
    if out is None:
        print(text, end="")
        return
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"--out {out} is there already") from error
    print(f"written: {out}; train by it: softmaxfree train {out}")


def _kind(recipe: str) -> str:
    name = str(read_recipe(recipe)["task"]).rpartition(".")[2].removesuffix("Task").lower()
    return "bags" if name.startswith("bag") else name


def commented(recipe: str) -> str:
    """Return a recipe, merged with its base, with all that may be set.

    Args:
        recipe: a name, a path to a YAML file, or the folder of a run.

    Returns:
        YAML that is the same recipe.
    """
    path = recipe_of(recipe)
    content = read_recipe(path)
    lines = [f"# {line}".rstrip() for line in read_header(find_recipe(path))]
    lines += [f"{key}: {content[key]}" for key in ("task", "datamodule")]
    lines += ["", "# A key behind # without a blank has its default: take the # away to set it."]
    known = keys_of(content)
    for section in SECTIONS:
        lines += ["", f"{section}:", *_section(content.get(section) or {}, known.get(section, {}))]
    return "\n".join(lines) + "\n"


def _section(given: Mapping[str, Any], known: Mapping[str, Key]) -> Iterator[str]:
    for name, key in known.items():
        default = "" if key.default is REQUIRED else in_yaml(key.default)
        about = f"{key.meaning} ({key.type}{default and f', default: {default}'})"
        yield from textwrap.wrap(about, _WIDTH, initial_indent="  # ", subsequent_indent="  # ")
        yield f"  {name}: {in_yaml(given[name])}" if name in given else f"  #{name}: {default}".rstrip()
    for name in given.keys() - known.keys():  # of a class whose source cannot be read
        yield f"  {name}: {in_yaml(given[name])}"
