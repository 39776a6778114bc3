"""Curves over the epochs: losses and scores, zoomed to the data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

__all__ = ["TRAINING_LOSS", "Curve", "Labels", "curves_of", "draw_curves", "is_logarithmic", "panels_of"]

Labels = Mapping[str, tuple[str, float, int]]
"""Label, factor and digits of each metric, as a task tells them."""

TRAINING_LOSS: Labels = {"train/loss": ("training loss", 1, 4)}
"""Of every task, beside the metrics of its own."""

_LOSS, _PERCENT, _OTHER = "loss", "%", "score"
_MARKED = 30  # epochs at most that are shown as points
_LOG_FROM = 10  # highest over lowest loss from which the axis is logarithmic
_FEW = 0.1  # part of the values that may lie outside an axis, where without them it is ...
_SHORTER, _PERCENT_SHORTER = 1 / 3, 1 / 10  # ... this much shorter; a score of the first epoch is far from none


@dataclass(frozen=True)
class Curve:
    """One metric of one run.

    Attributes:
        label: for the legend.
        epochs: from 1.
        values: as many, all finite.
        panel: what the values are: the label of their axis.
    """

    label: str
    epochs: list[int]
    values: list[float]
    panel: str


def curves_of(rows: Sequence[Mapping[str, Any]], labels: Labels) -> list[Curve]:
    """Return the curves of a run, without those of metrics that have no value at all.

    Such are nan throughout, or -1 throughout, by which COCO's tools say that no object is of a size.

    Args:
        rows: of an `EpochRecord` or of `metrics.csv`.
        labels: of the metrics that are shown.

    Returns:
        The curves.
    """
    curves = []
    for name, (label, factor, _) in labels.items():
        values = {int(row["epoch"]) + 1: row.get(name) for row in rows}
        shown = {epoch: value for epoch, value in values.items() if value is not None and math.isfinite(value)}
        if all(value == -1 for value in shown.values()):
            continue
        panel = _LOSS if name.endswith("loss") else _PERCENT if factor == 100 else _OTHER
        scaled = [factor * value for value in shown.values()]
        curves.append(Curve(label.removesuffix(" (%)"), list(shown), scaled, panel))
    return curves


def panels_of(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Return the curves by what their values are, losses first."""
    panels: dict[str, list[Curve]] = {}
    for panel in (_LOSS, _PERCENT, _OTHER):
        if chosen := [curve for curve in curves if curve.panel == panel]:
            panels[panel] = chosen
    return panels


def is_logarithmic(curves: Sequence[Curve]) -> bool:
    """Return whether these are losses of which most lie far apart."""
    if any(curve.panel != _LOSS or not all(value > 0 for value in curve.values) for curve in curves):
        return False
    low, high = _most([[math.log10(value) for value in curve.values] for curve in curves])
    return high - low >= math.log10(_LOG_FROM)


def draw_curves(
    panels: Mapping[str, Sequence[Curve]],
    title: str,
    width: float = 6,
    height: float = 4,
    logarithmic: bool | None = None,
) -> Figure:
    """Draw panels side by side.

    Args:
        panels: curves by the label of their axis; one at least.
        title: of the figure.
        width: of one panel, inches.
        height: of the figure, inches.
        logarithmic: axes of losses; None decides by their values.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    figure.suptitle(title, fontsize="medium", parse_math=False)
    for axes, (panel, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        colours = colormaps["tab10" if len(curves) <= 10 else "tab20"]
        for i, curve in enumerate(curves):
            marker = "o" if len(curve.values) <= _MARKED else None
            # a label that begins with _ would be left out of the legend
            label = f" {curve.label}" if curve.label.startswith("_") else curve.label
            colour = colours(i % colours.N)
            axes.plot(curve.epochs, curve.values, color=colour, marker=marker, markersize=3.5, label=label)
        _scale(axes, curves, panel, is_logarithmic(curves) if logarithmic is None else logarithmic and panel == _LOSS)
        axes.set(xlabel="epoch", ylabel=panel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
        axes.grid(alpha=0.25)
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(curves) > 4 else {}
        for text in axes.legend(fontsize="small", frameon=False, **beside).get_texts():
            text.set_parse_math(False)
    return figure


def _scale(axes: Any, curves: Sequence[Curve], panel: str, logarithmic: bool) -> None:
    """Zooms to the values; a few that would squeeze all others are left outside, which is said."""
    values = sorted(value for curve in curves for value in curve.values)
    ratios = panel == _LOSS and values[0] > 0
    shown = [[math.log10(v) for v in curve.values] if ratios else curve.values for curve in curves]
    low, high = _most(shown, _PERCENT_SHORTER if panel == _PERCENT else _SHORTER)
    if ratios and not logarithmic:
        low, high = 10**low, 10**high
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    ends = low - margin, high + margin
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 3 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        ends = 10 ** ends[0], 10 ** ends[1]
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    else:
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        if panel == _PERCENT:
            ends = max(ends[0], min(0, low)), min(ends[1], max(100, high))
    axes.set_ylim(*ends)
    outside = [value for value in values if not ends[0] <= value <= ends[1]]
    for line in axes.get_lines():
        line.set_clip_on(bool(outside))  # else the points at 100 % were cut in two
    if outside:
        told = ", ".join(f"{value:.4g}" for value in outside[:3]) + (", ..." if len(outside) > 3 else "")
        axes.set_title(f"outside this axis: {told}", fontsize="small", loc="right", style="italic")


def _most(curves: Sequence[Sequence[float]], shorter: float = _SHORTER) -> tuple[float, float]:
    """The range of the values, without the fewest that lie so far from all others that they would squeeze them.

    Without these it is that much shorter. Of each curve at least half is inside.
    """
    values = sorted(value for curve in curves for value in curve)
    first, last = values[0], values[-1]
    for few in range(1, max(int(_FEW * len(values)), 1 if len(values) >= 6 else 0) + 1):
        ranges = [(values[i], values[len(values) - 1 - few + i]) for i in range(few + 1)]
        low, high = min(ranges, key=lambda ends: ends[1] - ends[0])
        halves = all(2 * sum(low <= value <= high for value in curve) >= len(curve) for curve in curves)
        if high - low < shorter * (last - first) and halves:
            return low, high
    return first, last
