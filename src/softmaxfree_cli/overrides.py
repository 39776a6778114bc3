"""Options that are keys of a recipe: `--section.key value`, written as one word."""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated

from cyclopts import Parameter

from softmaxfree_cli.errors import InputError

__all__ = ["Overrides", "joined"]

Overrides = Annotated[Sequence[str], Parameter(show=False, allow_leading_hyphen=True)]
"""The type of an argument `overrides`: each is `--section.key=value`."""


def joined(tokens: Iterable[str], options: Collection[str]) -> list[str]:
    """Write each key of a recipe and its value as one word, behind all else.

    Args:
        tokens: what stands behind the command.
        options: those that the command has of its own.

    Returns:
        The tokens; `--key value` is `--key=value`.

    Raises:
        InputError: a key has no value.
    """
    rest, overrides = list[str](), list[str]()
    left = deque(tokens)
    while left:
        token = left.popleft()
        key, equals, _ = token.partition("=")
        if not key.startswith("--") or key == "--" or key in options:
            rest.append(token)
        elif equals:
            overrides.append(token)
        elif left and not left[0].startswith("--"):
            overrides.append(f"{key}={left.popleft()}")
        elif "." in key:
            raise InputError(f"{key} needs a value")
        else:
            overrides.append(key)  # no key, which is told together with the others that are none
    return [*rest, *(["--"] if overrides else []), *overrides]
