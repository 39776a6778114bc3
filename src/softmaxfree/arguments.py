"""Checks of arguments that a user gives: each names the argument, what was given and what is allowed."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from softmaxfree.errors import InputError
from softmaxfree.printing import few

__all__ = ["require", "require_known", "require_number", "require_odd", "require_whole", "require_whole_numbers"]

_MOST_NAMES = 40  # that a message lists


def require(condition: bool, name: str, given: Any, allowed: str) -> None:
    """Raises InputError unless the condition holds."""
    if not condition:
        raise InputError(f"{name} must be {allowed}, got {given!r}")


def require_known(name: str, given: Any, known: Iterable[str]) -> None:
    """Raises InputError, with the nearest names, unless `given` is one of those that are known."""
    known = list(dict.fromkeys(known))
    if given not in known:
        close = difflib.get_close_matches(str(given), known)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {few(known, _MOST_NAMES)}"
        raise InputError(f"{name}: there is no {given!r}; {hint}")


def require_whole(name: str, given: Any, least: int) -> None:
    """Raises InputError unless `given` is an int, no bool, of at least `least`."""
    whole = isinstance(given, int) and not isinstance(given, bool)
    require(whole, name, given, f"a whole number, {least} or more")
    require(given >= least, name, given, f"{least} or more")


def require_odd(name: str, side: int, least: int = 1) -> None:
    """Raises InputError unless the side of a filter is odd and `least` or more, or 0."""
    require_whole(name, side, 0)
    more = f", {least} or more" if least > 1 else ""
    require(side == 0 or (side % 2 == 1 and side >= least), name, side, f"odd{more}, or 0 for none")


def require_whole_numbers(name: str, given: Any, count: int, least: int) -> None:
    """Raises InputError unless `given` is a sequence of `count` ints of at least `least`."""
    fits = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == count
    fits = fits and all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in given)
    many = "a list of one whole number" if count == 1 else f"a list of {count} whole numbers"
    require(fits, name, given, f"{many}, {least} or more")


def require_number(name: str, given: Any, least: float, below: float = math.inf) -> None:
    """Raises InputError unless `given` is a finite number, no bool, in `[least, below)`."""
    number = isinstance(given, int | float) and not isinstance(given, bool)
    allowed = f"{least:g} or more" if below == math.inf else f"in [{least:g}, {below:g})"
    require(number and least <= given < below, name, given, allowed)
