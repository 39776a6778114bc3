"""Help: of the whole, of a command, and of every key of a recipe."""

import ast
import importlib.metadata
import platform
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from softmaxfree_cli import COMMANDS
from softmaxfree_cli.commands import app_of, bind
from softmaxfree_cli.errors import InputError
from softmaxfree_cli.heads import head
from softmaxfree_cli.keys import REQUIRED, keys_of
from softmaxfree_cli.recipes import read_recipe, recipe_of, recipes
from softmaxfree_cli.source import find, read
from softmaxfree_cli.words import columns, in_yaml

__all__ = ["HELP", "help_of", "versions"]

HELP = ("--help", "-h")

_WRAP: Any = {"break_long_words": False, "break_on_hyphens": False}
_ABOUT = "Vision backbones with softmax-free attention (SOFT, SOFT++): train, measure, use."
_EXAMPLES = """\
softmaxfree recipes                             what can be trained
softmaxfree train digits                        a first run, in minutes on a CPU
softmaxfree train classification --data.root D  a classifier of your photographs
softmaxfree train digits --help                 every key of a recipe
softmaxfree validate runs/digits/0              the scores of a run
softmaxfree predict new/ --checkpoint runs/classification/0"""
_MORE = """
`softmaxfree COMMAND --help` explains a command; --version prints versions, and
--traceback shows where an error came from.
"""


def help_of(name: str | None, tokens: Sequence[str] = ()) -> str:
    """Return the help of the whole, of a command, or of a command and each key of a recipe.

    Args:
        name: of the command; None is the whole.
        tokens: what stands behind it.

    Returns:
        The text, with colours if it goes to a terminal.

    Raises:
        InputError: there is no such command or recipe.
    """
    from rich.console import Console

    if name not in (None, *COMMANDS):
        bind(str(name), ())
    console = Console()
    heads = {known: head(COMMANDS[known]) for known in ([name] if name else COMMANDS)}
    with console.capture() as text:
        app_of(heads, help=_ABOUT).help_print([name] if name else [], console=console)
    examples = textwrap.indent(heads[name].examples if name else _EXAMPLES, "  ")
    about = f"{text.get()}\nexamples:\n{examples}\n{'' if name else _MORE}"
    if name not in ("train", "validate"):
        return about
    try:
        recipe = bind(name, [token for token in tokens if token not in HELP])[0]["recipe"]
    except InputError:  # of what else stands there
        return f"{about}\nrecipes:\n{columns(recipes())}\n"
    return about + "\n" + "\n".join(_lines(read_recipe(recipe_of(recipe)), recipe)) + "\n"


def versions() -> str:
    """Return the versions that matter, in one line."""
    own = find(read("softmaxfree.version"), "__version__")  # that of the code that runs, installed or not
    assert own is not None
    assert isinstance(own[1], ast.Assign)
    found = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm")]
    return " ".join([f"softmaxfree {ast.literal_eval(own[1].value)}", *found, "Python", platform.python_version()])


def _lines(content: Mapping[str, Any], recipe: str) -> Iterator[str]:
    """Each key: its type, its value in the recipe, and what it means."""
    width = max(shutil.get_terminal_size((100, 24)).columns, 60)
    known = keys_of(content)
    yield f"keys of {recipe}, with its values as defaults:"
    for section, keys in known.items():
        given = content.get(section) or {}
        yield f"\n{section}:"
        for name, key in keys.items():
            value = given.get(name, key.default)
            default = "required" if value is REQUIRED else f"default: {in_yaml(value)}"
            line = f"--{section}.{name}  {key.type}  ({default})  {key.meaning}"
            yield from textwrap.wrap(line, width, initial_indent="  ", subsequent_indent="      ", **_WRAP)
    for section in ("model", "data"):
        if section not in known:
            yield f"\n{section}: the source of its class cannot be read here"
