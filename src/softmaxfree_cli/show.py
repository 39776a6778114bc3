"""`softmaxfree recipes`: what can be trained, and by which settings."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from softmaxfree_cli.errors import InputError
from softmaxfree_cli.keys import REQUIRED, Key, keys_of
from softmaxfree_cli.recipes import SECTIONS, find_recipe, read_header, read_recipe, recipe_of, recipes
from softmaxfree_cli.words import columns, in_yaml

__all__ = ["commented", "run"]


def run(action: Literal["list", "show"] = "list", recipe: str | None = None, *, out: str | None = None) -> None:
    """List the recipes, or show one.

    Args:
        action: `list` names the recipes, `show` prints one: merged with its base, and each key that may be set with
            its meaning. What is printed is a recipe, to be saved and changed.
        recipe: to show: a name, a YAML file, or the folder of a run.
        out: a file to write it to, which must not be there yet; None prints it.

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
        names = {name: (str(read_recipe(name)["task"]).rpartition(".")[2], line) for name, line in recipes().items()}
        print(
            columns({name: f"{task.removesuffix('Task').lower():14}  {line}" for name, (task, line) in names.items()})
        )
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
    for name, key in {**known, **{name: Key("", REQUIRED, "") for name in given if name not in known}}.items():
        about = f"{key.meaning} ({key.type}" + (
            ")" if key.default is REQUIRED else f", default: {in_yaml(key.default)})"
        )
        if key.type:
            yield from textwrap.wrap(about, 110, initial_indent="  # ", subsequent_indent="  # ")
        if name in given:
            yield f"  {name}: {in_yaml(given[name])}"
        else:
            yield f"  #{name}: {'' if key.default is REQUIRED else in_yaml(key.default)}".rstrip()
