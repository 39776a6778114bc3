"""The commands: where each is, and how its words are understood."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import MissingArgumentError, UnknownOptionError, UnusedCliTokensError

from softmaxfree_cli import COMMANDS
from softmaxfree_cli.errors import InputError
from softmaxfree_cli.heads import Head, head
from softmaxfree_cli.keys import check_keys
from softmaxfree_cli.overrides import taken_out
from softmaxfree_cli.recipes import read_recipe, recipe_and_weights, recipe_of

__all__ = ["app_of", "bind", "parse"]

_SETTINGS: dict[str, Any] = {
    "help_format": "plaintext",
    "default_parameter": Parameter(negative=(), consume_multiple=1),
}


def app_of(heads: Mapping[str, Head], **settings: Any) -> App:
    """Build an application, which parses and explains, and runs nothing.

    Args:
        heads: of its commands.
        **settings: of the application.

    Returns:
        The application.
    """
    app = App(name="softmaxfree", version="", version_flags=[], **_SETTINGS, **settings)
    for order, (name, (function, summary, description, *_)) in enumerate(heads.items()):
        text = f"{summary}\n\n{description}".strip()
        app.command(function, name=name, help=text, sort_key=order, **_SETTINGS)
    return app


def bind(name: str, tokens: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of a command, and the options that it has.

    Args:
        name: of the command.
        tokens: what stands behind it.

    Returns:
        Arguments of its `run`, by name; and options such as `--out`.

    Raises:
        InputError: there is no such command, or it does not understand them.
    """
    heads = {known: head(COMMANDS[known]) for known in ([name] if name in COMMANDS else COMMANDS)}
    app = app_of(heads)
    own = app[name].assemble_argument_collection() if name in COMMANDS else ()
    options = [option for argument in own for option in argument.names if option.startswith("--")]
    keys = {}
    if name in heads and heads[name].takes_keys:
        keys["overrides"], tokens = taken_out(tokens, options)
    try:
        _, bound, _ = app.parse_args([name, *tokens], print_error=False, exit_on_error=False, help_on_error=False)
    except CycloptsError as error:
        raise InputError(_explained(error, options, name)) from error
    return {**bound.arguments, **keys}, options


def parse(name: str, tokens: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command, whose recipe has no unknown keys.

    Args:
        name: of the command.
        tokens: what stands behind it.

    Returns:
        Arguments of its `run`, by name.

    Raises:
        InputError: command, option, recipe or key are unknown, or a value is missing or of the wrong type.
        FileNotFoundError: there is no such recipe.
    """
    arguments, options = bind(name, tokens)
    if name == "validate":
        recipe_and_weights(arguments["recipe"], arguments.get("checkpoint"))
    if "overrides" in arguments:
        try:
            content = read_recipe(recipe_of(arguments["recipe"]))
        except FileNotFoundError:
            if not arguments.get("resume"):  # by a recipe that may be gone
                raise
        else:
            complete = name == "train" and not arguments.get("resume")
            check_keys(content, arguments["overrides"], options, complete=complete)
    return arguments


def _explained(error: CycloptsError, options: Sequence[str], name: str) -> str:
    """One line, with all options where it suggests none."""
    error.verbose = False
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        data = name in COMMANDS and head(COMMANDS[name]).takes_keys and os.path.exists(words)
        return f"unexpected {words!r}" + (f"; for the data, give --data.root {shlex.quote(words)}" if data else "")
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.argument.tokens:
        missing = "needs a value" if error.argument.name.startswith("--") else "is missing"
        there = "; `softmaxfree recipes` lists them" if error.argument.name == "RECIPE" else ""
        return f"{error.argument.name} {missing}{there}"
    unknown = isinstance(error, UnknownOptionError) and "Did you mean" not in str(error)
    return f"{error} Choose from {', '.join(options)}." if unknown else str(error)
