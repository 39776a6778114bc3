"""Text as it can be shown in one line."""

import unicodedata

__all__ = ["printable"]

_BREAK_LINES = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, ends of lines and paragraphs


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
