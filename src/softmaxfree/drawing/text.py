"""Words in pictures: a font that has their letters, cut to the room that there is, legible on any colour."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager
from PIL import ImageDraw, ImageFont

from softmaxfree.drawing.colours import Colour, luminance

__all__ = ["Place", "contrast", "font_for", "label", "legible", "line_height", "place", "shortened", "text_size"]

Place = tuple[int, int, int, int]  # left, top, right, bottom

_SMALLEST = 12
_MIDDLE = 0.179  # luminance on which black and white are equally legible


def text_size(height: int, width: int) -> int:
    """Return the size of letters, pixels, that suits a picture."""
    return max(_SMALLEST, min(round((height * width) ** 0.5 / 40), min(height, width) // 4))


def legible(name: str, number: int) -> str:
    """Return the name of a class in one line; its number where it has no name, or letters that no font here has."""
    name = " ".join(name.split())
    return name if name and _font_file(frozenset(name))[1] else f"class {number}"


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font that has all letters of a text, as far as one is installed."""
    return _load(_font_file(frozenset(text))[0], size)


def line_height(size: int) -> int:
    """Return the height of a line of letters of a size, with a little room."""
    return sum(font_for("", size).getmetrics()) + size // 6


def shortened(text: str, size: int, width: float) -> str:
    """Return a text that is at most so wide, the end of it cut."""
    font = font_for(text, size)
    if font.getlength(text) <= width:
        return text
    cut = [f"{text[:end].rstrip()}…" for end in range(len(text))]
    return cut[max(0, bisect_right(cut, width, key=font.getlength) - 1)] if cut else text


def contrast(ground: Colour) -> str:
    """Return the colour of letters, black or white, that is the more legible on a ground."""
    return "black" if luminance(ground) > _MIDDLE else "white"


def place(box: Sequence[float], size: tuple[int, int], whole: tuple[int, int], taken: Sequence[Place]) -> Place | None:
    """Find room for a label at a box, inside the picture and beside other labels; best where it hides no object.

    Args:
        box: left, top, right, bottom.
        size: width and height of the label.
        whole: those of the picture.
        taken: where labels are already.

    Returns:
        The place; None if there is no room.
    """
    (left, top, right, bottom), (width, height) = (round(side) for side in box), size
    outside = ((left, top - height), (left, bottom), (right - width, top - height), (right - width, bottom))
    for x, y in (*outside, (left, top), (left, bottom - height), (right - width, bottom - height)):
        x = max(0, min(x, whole[0] - width))
        own = (x, y, x + width, y + height)
        apart = all(own[0] >= x1 or own[2] <= x0 or own[1] >= y1 or own[3] <= y0 for x0, y0, x1, y1 in taken)
        if y >= 0 and own[2] <= whole[0] and own[3] <= whole[1] and apart:
            return own
    return None


def label(pen: ImageDraw.ImageDraw, where: Place, text: str, size: int, colour: Colour) -> None:
    """Write a text on a ground of a colour, which is its place."""
    left, top, right, bottom = where
    pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    pen.text((left + size // 4, top + size // 12), text, fill=contrast(colour), font=font_for(text, size))


@cache
def _font_file(letters: frozenset[str]) -> tuple[str, bool]:
    """The file of a font, and whether it has all the letters."""
    usual = font_manager.findfont("DejaVu Sans")  # which comes with matplotlib
    needed = {ord(letter) for letter in letters}
    others = sorted(entry.fname for entry in font_manager.fontManager.ttflist if "Last Resort" not in entry.name)
    files = [usual, *others]  # the one of last resort has a box for each letter
    found = next((file for file in files if needed <= _letters_of(file)), None)
    return found or usual, found is not None


@cache
def _letters_of(file: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(file).get_charmap())


@cache
def _load(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)
