"""Confusion matrices: pictures, and what can be read from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

__all__ = ["LABELLED", "draw_confusion", "most_confused"]

LABELLED = 30
"""Classes at most for which names and counts are legible."""

_LONGEST = 24  # letters of a name
_CELLS = 128  # each way at most, that can be seen


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, its colours by the part of a true class.

    With more than `LABELLED` classes there are no names and counts; of very many classes a square shows the largest
    part among several classes.

    Args:
        counts: (classes, classes) int64, rows are the true classes.
        class_names: as many names, or none.
        title: of the figure.

    Returns:
        The figure.
    """
    classes = len(counts)
    named = classes <= LABELLED
    names = [_short(name) for name in class_names] or [str(i) for i in range(classes)]
    room = 0.07 * max(map(len, names)) if named else 0
    side = max(2.6, 0.46 * classes) if named else 6
    figure = Figure(figsize=(side + room + 2.2, side + room + 1.2), layout="constrained")
    axes = figure.subplots()
    parts = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    norm = PowerNorm(1 if named else 0.5, vmin=0, vmax=100)  # many classes: to see few mistakes among many squares
    image = axes.imshow(
        _pooled(parts),
        cmap="Blues",
        norm=norm,
        interpolation="nearest",
        extent=(-0.5, classes - 0.5, classes - 0.5, -0.5),
    )
    figure.suptitle(title, fontsize="medium", parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="% of the true class", shrink=0.8)
    if not named:
        return figure
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if room > 0.25 else {}
    axes.set_xticks(range(classes), names, parse_math=False, **turned)
    axes.set_yticks(range(classes), names, parse_math=False)
    axes.tick_params(length=0)
    shown = {(i, j): _count(int(counts[i, j])) for i, j in np.argwhere(counts).tolist()}
    size = 9 if all(len(text) < 5 for text in shown.values()) else 7
    for (i, j), text in shown.items():
        colour = "white" if parts[i, j] > 55 else "#08306b"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
    return figure


def most_confused(counts: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """Return the true class, the class taken for it and how often, the most frequent first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:count]
    pairs = (np.unravel_index(int(index), wrong.shape) for index in order)
    return [(int(i), int(j), int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _pooled(parts: np.ndarray) -> np.ndarray:
    """The largest of square blocks, as many as can be seen."""
    block = -(-len(parts) // _CELLS)
    padded = np.pad(parts, (0, -len(parts) % block))
    return padded.reshape(len(padded) // block, block, -1, block).max((1, 3))


def _short(name: str) -> str:
    """A name whose begin and end are kept, in which names mostly differ."""
    name = " ".join(name.split())
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[1 - half :]}"


def _count(number: int) -> str:
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if number >= unit:
            return f"{number / (1000 if letter == 'k' else unit):.3g}{letter}"
    return str(number)
