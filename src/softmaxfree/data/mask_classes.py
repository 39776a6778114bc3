"""Which value of a mask is which class: from `classes.txt`, or from what the masks hold."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from softmaxfree.errors import InputError
from softmaxfree.printing import few

__all__ = [
    "COLOUR",
    "IGNORED",
    "Listing",
    "MaskClasses",
    "found_classes",
    "listed_classes",
    "mixed_masks",
    "show_value",
]

IGNORED = 255  # the label of pixels that count neither in training nor in a score
COLOUR = 1 << 24  # added to red, green and blue as one number, so that no number of a class is like a colour

_MOST = 254  # classes, as labels are 8 bits and 255 is ignored
_MOST_FOUND = 64  # without names: more values are mostly no classes
_NOT_NUMBERED = re.compile(r"(?!\d+[\s,;:]).+")
_NUMBERED = re.compile(r"(\d+)[\s,;:]+(\S.*)")
_COLOURED = re.compile(r"(\d+)[\s,;:]+(\d+)[\s,;:]+(\d+)[\s,;:]+(\S.*)")


@dataclass(frozen=True)
class MaskClasses:
    """What stands for each class in masks.

    Attributes:
        values: of each label, in the order of labels. Those of colours are `COLOUR` and more.
        names: of each label.
        ignored: values of pixels that count nowhere.
        allowed: which values are allowed and why, in words.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]
    ignored: frozenset[int]
    allowed: str

    @property
    def are_colours(self) -> bool:
        """Whether the values are colours."""
        return self.values[0] >= COLOUR

    def wrong(self, values: Sequence[int]) -> list[int]:
        """Return which values are neither a class nor ignored."""
        return sorted(set(values) - set(self.values) - self.ignored)

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Return the label of each value, uint8, and `IGNORED` where it is no class."""
        order = np.argsort(self.values)
        known = np.array(self.values, np.int64)[order]
        at = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(known[at] == values, order[at], IGNORED).astype(np.uint8)


def show_value(value: int) -> str:
    """Return a value as the masks have it: a number, or red, green and blue."""
    return str((value >> 16 & 255, value >> 8 & 255, value & 255)) if value >= COLOUR else str(value)


@dataclass(frozen=True)
class Listing:
    """What a `classes.txt` says.

    Attributes:
        file: it.
        values: of each name; None where the lines are names alone.
        names: in the order of lines.
    """

    file: Path
    values: tuple[int, ...] | None
    names: tuple[str, ...]

    @property
    def are_colours(self) -> bool:
        """Whether the values are colours."""
        return self.values is not None and self.values[0] >= COLOUR


def listed_classes(file: Path) -> Listing:
    """Read `classes.txt`: on each line `name`, `value name` or `red green blue name`, in all the same way.

    Args:
        file: UTF-8; empty lines do not count.

    Returns:
        What it says.

    Raises:
        InputError: the lines differ in kind, or a name or value is there twice.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text: {error}") from error
    if not lines:
        raise InputError(f"{file} is empty; write the name of a class on each line")
    for pattern in (_COLOURED, _NUMBERED, _NOT_NUMBERED):
        if pattern.fullmatch(lines[0]):
            break
    values: list[int] = []
    names: list[str] = []
    for line in lines:
        found = pattern.fullmatch(line)
        if not found or (pattern is _NUMBERED and _COLOURED.fullmatch(line)):
            raise InputError(
                f"{file}: {line!r} is not written as {lines[0]!r} is; write `name`, `value name` or "
                "`red green blue name` on each line, all in the same way"
            )
        *numbers, name = found.groups() or (line,)
        parts = [int(min(Decimal(number), Decimal(65536))) for number in numbers]  # `int` takes 4,300 digits at most
        if max(parts, default=0) > (255 if len(parts) == 3 else 65535):
            raise InputError(f"{file}: {line!r}: a value is at most 65535, a part of a colour at most 255")
        names.append(name.strip())
        if parts:
            values.append(parts[0] if len(parts) == 1 else COLOUR + (parts[0] << 16) + (parts[1] << 8) + parts[2])
    for kind, entries in (("name", names), ("value", [show_value(value) for value in values])):
        if twice := [entry for entry in entries if entries.count(entry) > 1]:
            raise InputError(f"{file} has the {kind} {twice[0]} twice")
    return Listing(file, tuple(values) or None, tuple(names))


def found_classes(
    pixels: Mapping[int, int],
    first: Mapping[int, str],
    where: Path,
    listing: Listing | None,
    known_classes: Sequence[str] = (),
) -> MaskClasses:
    """Decide what the classes are.

    Without a listing, 0 and 255 alone are background and object; else each value but 255 is a class, whose name is its
    number.

    Args:
        pixels: how many have each value.
        first: a mask that has it.
        where: the data are, for messages.
        listing: of the classes, if there is one.
        known_classes: numbers that are the classes where the masks have no other value, and there is no listing.

    Returns:
        The classes.

    Raises:
        InputError: there is one class, or a value or colour that is none.
    """
    values = sorted(pixels)
    binary = values == [0, IGNORED]
    numbers = {name for name in known_classes if name.isdecimal()}
    if (
        listing is None
        and numbers
        and numbers == set(known_classes)
        and {str(v) for v in values if v != IGNORED} <= numbers
    ):
        if binary and len(numbers) == 2:
            raise InputError(
                f"data.root: the masks of {where} hold 0 and {IGNORED} alone, but the model knows "
                f"{' and '.join(known_classes)}, and {IGNORED} for what is ignored: nothing would be left of the "
                f"object; write {where / 'classes.txt'} with `0 {known_classes[0]}` and `{IGNORED} {known_classes[1]}`"
            )
        own = {int(name): name for name in known_classes}
        return MaskClasses(tuple(own), tuple(own.values()), frozenset({IGNORED}), f"the model knows {list(own)}")
    if listing is None:
        return _by_values(pixels, first, where, binary)
    file, listed, names = listing.file, list(listing.values or ()), list(listing.names)
    if listing.values is None:
        listed = [0, IGNORED] if binary and len(names) == 2 else list(range(len(names)))
    kept = [i for i, name in enumerate(names) if name.lower() not in ("ignore", "ignored")]
    ignored = {IGNORED} | (set(listed) - {listed[i] for i in kept})
    names, listed = [names[i] for i in kept], [listed[i] for i in kept]
    if not 2 <= len(names) <= _MOST:
        raise InputError(f"{file} names {len(names)} class(es); allowed are 2 to {_MOST}, the background among them")
    told = ", ".join(map(show_value, listed[:5])) + (", ..." if len(listed) > 5 else "")
    left = ", ".join(map(show_value, sorted(ignored - set(listed))))
    allowed = f"{file} allows {told}" + (f", and {left} for what is ignored" if left else "")
    classes = MaskClasses(tuple(listed), tuple(names), frozenset(ignored) - set(listed), allowed)
    if wrong := classes.wrong(values):
        raise InputError(f"{_listed(wrong, pixels, first)}; {allowed}; what else is a class needs a line there")
    present = [name for name, value in zip(names, listed, strict=True) if value in pixels]
    if len(present) < 2:
        what = f"only {present[0]} of the classes of {file}" if present else f"none of the classes of {file}"
        raise InputError(f"data.root: the masks of {where} hold {what}; there is nothing to tell apart")
    return classes


def mixed_masks(counts: Sequence[Mapping[int, int] | None], names: Sequence[str], classes: MaskClasses) -> str:
    """Return in words how many masks may have their object as 255, which is ignored; empty if none.

    Args:
        counts: of each mask how many pixels have each value; None for one that cannot be read.
        names: of the masks.
        classes: as they were decided.

    Returns:
        One line: some masks hold 0 and 255 alone, and others a single class beside 0.
    """
    if len(classes.values) != 2 or IGNORED not in classes.ignored or 0 not in classes.values:
        return ""
    odd = [name for name, own in zip(names, counts, strict=True) if own and sorted(own) == [0, IGNORED]]
    if not odd:
        return ""
    other = next(value for value in classes.values if value != 0)
    return (
        f"{len(odd)} of {len(names)} masks hold 0 and {IGNORED} alone, such as {odd[0]}, and others 0 and {other}: "
        f"{IGNORED} is ignored; if it is the object there, write {other}"
    )


def _by_values(pixels: Mapping[int, int], first: Mapping[int, str], where: Path, binary: bool) -> MaskClasses:
    values = sorted(pixels)
    if colours := [value for value in values if value >= COLOUR]:
        raise InputError(
            f"data.root: {_listed(colours, pixels, first, 8)}: masks in colour need {where / 'classes.txt'} with "
            "`red green blue name` on each line"
        )
    between = [value for value in values if value not in (0, IGNORED)]
    total = sum(pixels.values())
    ends = min(pixels.get(0, 0), pixels.get(IGNORED, 0))
    if len(between) > 4 and ends > 0 and (pixels[0] + pixels[IGNORED]) > 0.8 * total:
        raise InputError(
            f"data.root: the masks of {where} are 0 and {IGNORED} but for {len(between)} values between "
            f"({_listed(between, pixels, first, 3)}), as if they were resized smoothly or saved as JPEG; save them "
            "with 0 and 255 alone"
        )
    kept = [0, IGNORED] if binary else [value for value in values if value != IGNORED]
    if len(kept) > _MOST_FOUND:
        raise InputError(
            f"data.root: the masks of {where} hold {len(kept)} values: {_listed(kept, pixels, first, 3)}; if they are "
            f"classes, name them in {where / 'classes.txt'}: `value name` on each line"
        )
    if len(kept) < 2:
        raise InputError(
            f"data.root: the masks of {where} hold {'a single' if kept else 'no'} class: "
            f"{_listed(values, pixels, first)}; the background must be one too"
            + (f", and {IGNORED} is ignored" if IGNORED in values else "")
        )
    names = ("background", "object") if binary else tuple(map(str, kept))
    ignored = frozenset() if binary else frozenset({IGNORED})
    return MaskClasses(tuple(kept), names, ignored, f"the masks of {where} held {kept}")


def _listed(values: Sequence[int], pixels: Mapping[int, int], first: Mapping[int, str], most: int = 5) -> str:
    named = [f"{show_value(value)} ({pixels[value]} pixels)" for value in sorted(values, key=lambda v: -pixels[v])]
    kind = "colour" if values[0] >= COLOUR else "value"
    return f"{first[values[0]]} has the {kind}{'s' if len(named) > 1 else ''} {few(named, most)}"
