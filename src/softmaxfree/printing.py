"""Text as it can be shown in one line."""

import unicodedata
from collections.abc import Sequence

__all__ = ["few", "printable"]

_BREAK_LINES = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, ends of lines and paragraphs


def few(names: Sequence[str], most: int = 12, sign: str = ", ") -> str:
    """Return the first names, and how many more there are: two or more, as one takes no more room than its number.

    Args:
        names: any number.
        most: that are named, or one more.
        sign: between them.

    Returns:
        Such as `a, b and 3 more`.
    """
    if len(names) <= most + 1:
        return sign.join(names)
    return f"{sign.join(names[:most])} and {len(names) - most} more"


def printable(text: str) -> str:
    """Return a text with escapes, such as `\\n`, for what breaks a line or cannot be printed.

    Args:
        text: such as the name of a class or file, which may hold anything.

    Returns:
        One line.
    """
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) in _BREAK_LINES:
        return character.encode("unicode_escape").decode()
    return character
