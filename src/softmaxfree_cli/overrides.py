"""Options that are keys of a recipe: `--section.key value`, written as one word."""

from collections import deque
from collections.abc import Collection, Iterable

from softmaxfree_cli.errors import InputError

__all__ = ["taken_out"]


def taken_out(tokens: Iterable[str], options: Collection[str]) -> tuple[list[str], list[str]]:
    """Take the keys of a recipe out of what stands behind a command.

    Args:
        tokens: what stands there.
        options: those that the command has of its own.

    Returns:
        The keys, each with its value as one word, `--key=value`; and the rest.

    Raises:
        InputError: a key has no value.
    """
    overrides, rest = list[str](), list[str]()
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
    return overrides, rest
