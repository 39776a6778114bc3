"""Legends: which colour is which class, and how much of it there is."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from softmaxfree.drawing.colours import Colour, colour
from softmaxfree.drawing.text import font_for, legible, line_height, shortened, text_size

__all__ = ["Entry", "beside_legend", "count_labels", "entries"]

_TALL = 1.5  # height to width from which a legend stands beside a picture, not below it
_NARROWEST = 300  # pixels of a legend
_LETTERS = 18  # widths of a letter that a name may have


class Entry(NamedTuple):
    """A line of a legend: colour (None for what is not painted), name, and how much of it there is."""

    colour: Colour | None
    name: str
    note: str = ""


def count_labels(found: dict[str, Tensor] | Tensor, num_classes: int) -> Tensor:
    """Return how many objects, or pixels, of each class there are.

    Args:
        found: of a detector, with `labels` `(n,)`; or class numbers `(h, w)`, of which those of no class do not count.
        num_classes: of the data.

    Returns:
        `(num_classes,)`, int64.
    """
    labels = (found if isinstance(found, Tensor) else found["labels"]).cpu().flatten()
    return labels[(labels >= 0) & (labels < num_classes)].bincount(minlength=num_classes)


def entries(
    counts: Tensor,
    class_names: Sequence[str],
    note: Literal["share", "count", "none"] = "none",
    colours: Sequence[Colour | None] | None = None,
) -> list[Entry]:
    """Return the lines of a legend: the classes that occur, with notes the largest first, else in their order.

    Args:
        counts: of each class, see `count_labels`.
        class_names: as many names.
        note: what stands behind a name: its share of the whole, how many there are, or nothing.
        colours: as many; None takes those of a detector, where each class has one.

    Returns:
        The lines.
    """
    lines = []
    order = counts.argsort(descending=True, stable=True).tolist() if note != "none" else range(len(counts))
    for number in order:
        if not (n := int(counts[number])):
            continue
        part = 100 * n / int(counts.sum())
        notes = {"share": f"{part:.1f} %" if part >= 0.05 else "< 0.1 %", "count": f"{n} x", "none": ""}
        own = colour(number) if colours is None else colours[number]
        lines.append(Entry(own, legible(str(class_names[number]), number), notes[note]))
    return lines


def beside_legend(
    picture: Image.Image, lines: Iterable[Entry], heading: str = "", size: int | None = None
) -> Image.Image:
    """Return a picture with a legend below it; of a tall picture at its right.

    Args:
        picture: in colour.
        lines: of the legend.
        heading: above them.
        size: of the letters, pixels; None suits the picture.

    Returns:
        A larger picture.
    """
    lines = list(lines)
    size = size or text_size(picture.height, picture.width)
    tall = picture.height > _TALL * picture.width
    room = max(_NARROWEST, picture.width) if not tall else max(_NARROWEST, picture.height // 4)
    legend = _legend(lines, heading, size, room, picture.height if tall else None)
    if tall:
        whole = Image.new("RGB", (picture.width + legend.width, max(picture.height, legend.height)), "white")
        corner = (picture.width, 0)
    else:
        whole = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), "white")
        corner = (0, picture.height)
    whole.paste(picture)
    whole.paste(legend, corner)
    return whole


def _legend(lines: Sequence[Entry], heading: str, size: int, width: int, height: int | None) -> Image.Image:
    """At most `width` wide; of a given height in as few columns as fit."""
    gap, step = size // 2, line_height(size) + size // 4
    longest = max((font_for(line.name, size).getlength(line.name) for line in lines), default=0.0)
    notes = max((font_for("", size).getlength(line.note) for line in lines), default=0.0)
    names = min(longest, _LETTERS * size, width - 5 * gap - size - notes)
    column = int(size + names + notes + 4 * gap)
    columns = max(1, min(len(lines), (width - gap) // column))
    top = gap + (step if heading else 0)
    if height is not None:
        column = max(column, _NARROWEST)
        columns = min(columns, -(-len(lines) // max(1, (height - top - gap) // step)) or 1)
        width = gap + columns * column
    rows = -(-len(lines) // columns)
    legend = Image.new("RGB", (width, top + rows * step + gap), "white")
    pen = ImageDraw.Draw(legend)
    if heading:
        heading = shortened(heading, size, width - 2 * gap)
        pen.text((gap, gap), heading, fill="black", font=font_for(heading, size))
    for i, line in enumerate(lines):
        x, y = gap + (i // rows) * column, top + (i % rows) * step
        pen.rectangle((x, y + size // 8, x + size, y + size // 8 + size), fill=line.colour, outline="black")
        name = shortened(line.name, size, names + 1)
        pen.text((x + size + gap, y), name, fill="black", font=font_for(name, size))
        after = x + size + 2 * gap + font_for(name, size).getlength(name)  # close to its name
        pen.text((after, y), line.note, fill="black", font=font_for("", size))
    return legend
