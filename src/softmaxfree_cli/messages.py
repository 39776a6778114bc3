"""What the parser of values says, in plain words."""

import difflib
import re
import sys
from collections.abc import Mapping
from typing import Any

from softmaxfree_cli.keys import keys_of

__all__ = ["in_plain_words"]


def in_plain_words(message: str, content: Mapping[str, Any]) -> str:
    """Return jsonargparse's message about a value without its types of Python.

    Args:
        message: the message.
        content: of the recipe.

    Returns:
        One line that names the key, what it takes and what was given.
    """
    found = re.search(r'Parser key "((\w+)\.(\w+)[\w.]*)"', message)
    key = keys_of(content).get(found[2], {}).get(found[3]) if found else None
    if found is None or key is None:
        return " ".join(message.split()).replace("Parser key", "key")
    path = found[1]
    if problem := re.search(r"Problem with given class_path '([\w.]+)':\s+(.+)", message):
        return f"{path}: {problem[1]}: {problem[2]}{_nearest_class(problem[1])}"
    if nested := re.search(r"NestedArg\(key='([^']*)'", message):
        return f"{path} has no key {nested[1]}: it must be {_with_articles(key.type)}"
    if path.count(".") > 1:  # of what stands below it the type is not known here
        return " ".join(message.split()).replace("Parser key", "key")
    got = re.search(r"(?:Got value|Given value): ?(.*)", message)
    close = difflib.get_close_matches(got[1] if got else "", key.type.split(" or "))
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{path} must be {_with_articles(key.type)}" + (f", got {got[1] or 'nothing'}" if got else "") + hint


def _nearest_class(path: str) -> str:
    """The end of a message: what a module holds, by whose name a class was not found."""
    name, _, wanted = path.rpartition(".")
    module = sys.modules.get(name)
    names = [] if module is None or hasattr(module, wanted) else [n for n in dir(module) if not n.startswith("_")]
    close = difflib.get_close_matches(wanted, names)
    return f"; did you mean {name}.{close[0]}?" if close else ""


def _with_articles(kinds: str) -> str:
    return re.sub(r"(^| or )(number|whole number|mapping|list)\b", r"\1a \2", kinds)
