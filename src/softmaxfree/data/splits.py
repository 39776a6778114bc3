"""Which images are to train on and which to validate with, where the data do not say."""

import csv
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softmaxfree.errors import InputError

__all__ = ["EVERY", "draw_split", "read_split", "val_share"]

EVERY = "all"
"""In the place of a file of splits: every image validates, as of data that nothing was trained on."""

_HEAD = ["file", "split"]


def val_share(num_images: int) -> float:
    """Return the part that validates: a fifth to 2,500 images, a tenth from 5,000, and linear between."""
    return float(np.interp(num_images, (2500, 5000), (0.2, 0.1)))


def draw_split(classes: Sequence[Collection[Any]], seed: int) -> list[bool]:
    """Draw the images that validate, the same for the same seed.

    Images are grouped by the rarest class that each has, and of each group the same part is drawn, at least one image
    of two or more; where that is too much of a small group, the next ones give less. A class that is then on one side
    alone, though two images have it, gets an image moved, if no other class is lost by that.

    Args:
        classes: of each image, in an order that is always the same; an image may have none.
        seed: of the draw.

    Returns:
        Whether each image validates. Of two images or more at least one is on each side.
    """
    rng = np.random.default_rng(seed)
    having = Counter(label for labels in classes for label in set(labels))
    groups: dict[Any, list[int]] = {}
    for i, labels in enumerate(classes):
        rarest = min(labels, key=lambda label: (having[label], label), default=None)
        groups.setdefault(rarest, []).append(i)
    share, val = val_share(len(classes)), [False] * len(classes)
    seen = drawn = 0
    for label in sorted(groups, key=lambda label: (having[label], label)):
        group = groups[label]
        seen += len(group)
        count = min(max(round(share * seen) - drawn, 1), len(group) - 1)
        drawn += count
        for i in rng.permutation(len(group))[:count]:
            val[group[i]] = True
    if len(classes) > 1 and not any(val):  # each group is one image
        val[int(rng.integers(len(classes)))] = True
    _complete(val, classes, having, rng)
    return val


def _complete(
    val: list[bool], classes: Sequence[Collection[Any]], having: Counter[Any], rng: np.random.Generator
) -> None:
    """Move single images until each class of two or more is on both sides, as far as that can be."""
    sides = {side: Counter(label for i, own in enumerate(classes) if val[i] is side for label in set(own))
             for side in (True, False)}  # fmt: skip
    for label in sorted(having, key=lambda label: (having[label], label)):
        for side in (False, True):  # a class that cannot be learned is the worse loss
            if sides[side][label] or having[label] < 2:
                continue
            there = [i for i, own in enumerate(classes) if label in own and val[i] is not side]
            free = [i for i in there if all(sides[not side][other] > 1 for other in set(classes[i]))]
            if free:
                moved = free[int(rng.integers(len(free)))]
                val[moved] = side
                sides[side].update(set(classes[moved]))
                sides[not side].subtract(set(classes[moved]))


def read_split(file: str | Path, names: Sequence[str]) -> dict[str, str]:
    """Read a CSV with the head `file,split`.

    Args:
        file: the CSV; or `EVERY`, by which all validate.
        names: of the images that there are, as the column `file` has them.

    Returns:
        "train" or "val" of each image.

    Raises:
        InputError: it cannot be read, its files are not those of the data, it lists one twice, or a side has no image.
    """
    if file == EVERY:
        return dict.fromkeys(names, "val")
    try:
        with open(Path(file).expanduser(), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.split: {file} cannot be read: {error}") from error
    if not rows or rows[0] != _HEAD:
        raise InputError(
            f"data.split: {file} must begin with the line file,split, got {','.join(rows[0]) if rows else 'nothing'}"
        )
    if odd := [row for row in rows[1:] if len(row) != 2 or row[1] not in ("train", "val")]:
        raise InputError(f"data.split: {file}: the split must be train or val, got the line {','.join(odd[0])}")
    twice = [name for name, count in Counter(row[0] for row in rows[1:]).items() if count > 1]
    if twice:
        raise InputError(f"data.split: {file} lists {twice[0]} twice ({len(twice)} such files)")
    splits: dict[str, str] = dict(rows[1:])
    known = set(names)
    absent, new = [name for name in splits if name not in known], [name for name in names if name not in splits]
    for wrong, what in ((absent, "of its files are not in the data"), (new, "images of the data are not in it")):
        if wrong:
            raise InputError(
                f"data.split: {file} is of other images: {len(wrong)} {what}, such as {wrong[0]}; put the images back "
                "as they were, or change the lines of that file"
            )
    for side in ("train", "val"):
        if side not in splits.values():
            raise InputError(f"data.split: {file} has no image for {side}")
    return splits
