"""The page of a comparison: accuracy against time, time and memory against tokens, all tables."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from softmaxfree.compare.measures import PASSES
from softmaxfree.compare.run import read_settings, read_table
from softmaxfree.compare.summary import accuracies, slopes, told_apart
from softmaxfree.report.figures import to_svg
from softmaxfree.report.page import ABSENT, render

__all__ = ["PAGE", "write_page"]

PAGE = "report.html"
"""Its name in the folder of a comparison."""

_Rows = list[dict[str, Any]]
_FACTS = {
    "name": "mixer", "not_measured": "not measured", "linear": "linear", "parameters": "parameters", "gmacs": "GMACs",
    "approximates": "comes near to", "error_to_exact": "error to it", "padding_error": "padding error",
    "bfloat16_error": "error in bfloat16", "residual": "residual of the inverse", "landmarks": "landmarks by",
}  # fmt: skip
_FACTS_ARE = (
    "Errors are those of a single mixer with random weights, not of a trained one, on the patches of one photograph. "
    "Landmarks are then found by the mean, as a convolution that finds them has to be learned first."
)
_COSTS_ARE = "A single mixer of 2 heads of 32 channels with random weights, without its projections, on one image."
_LINES = ("-", "--", ":", "-.")


def write_page(out: Path) -> Path:
    """Write the page of what is in the tables of a comparison.

    Args:
        out: its folder.

    Returns:
        The page.
    """
    tables = (read_table(out, name) for name in ("facts", "cost", "accuracy", "transfer"))
    facts, cost, accuracy, transfer = map(told_apart, tables)
    settings = read_settings(out)
    figures = []
    for what in PASSES:
        for column, label in (("milliseconds", "time, ms"), ("peak_mib", "memory, MiB")):
            curves = _curves(cost, what, column)
            if any(len(points) > 1 for points in curves.values()):
                title = f"{label.partition(',')[0]} of an image over its tokens, {what}"
                figures.append((title, _svg(partial(_draw_curves, curves, label), title)))
    residuals = {row["name"]: float(row["residual"]) for row in facts if row.get("residual")}
    if len(set(residuals.values())) > 1:
        title = "Residual of the inverse"
        figures.append((title, _svg(partial(_draw_residuals, residuals), title)))
    scores = accuracies(accuracy)
    for data in dict.fromkeys(row["data"] for row in scores):
        own = [row for row in scores if row["data"] == data]
        if len(own) > 1:
            title = f"{own[0]['metric'].removeprefix('val/')} on {data} against seconds of training"
            figures.append((title, _svg(partial(_draw_scores, own), title)))
    columns = {key: name for key, name in _FACTS.items() if key != "not_measured" or any(row.get(key) for row in facts)}
    facts_shown = [[_shown(row.get(key, "")) for key in columns] for row in facts]
    passes = [(f"{what.capitalize()}: milliseconds (MiB)", _COSTS_ARE, *_pivot(cost, what)) for what in PASSES if cost]
    page = out / PAGE
    about = next(iter([*facts, *cost, *accuracy]), {})
    render(
        "mixers.html",
        page,
        title=_title(len({row["name"] for row in [*facts, *cost, *accuracy]}), settings),
        version=about.get("softmaxfree", ""),
        about=about,
        figures=figures,
        scores=scores,
        guesses=_guesses(scores),
        transfer=accuracies(transfer, by=("img_size",)),
        slopes=slopes(cost),
        tables=[("Facts", _FACTS_ARE, list(columns.values()), facts_shown), *passes],
    )
    return page


def _title(count: int, settings: dict[str, Any]) -> str:
    if not settings.get("study"):
        return f"{count} ways to mix tokens, compared"
    return f"Study of {settings['study']}: {count} ways of {settings.get('mixers', 'one mixer')}, compared"


def _guesses(scores: _Rows) -> list[str]:
    """What each data's scores are to be held against."""
    told = {row["data"]: row for row in scores if row["guess"] is not None}
    return [
        f"On {data} {row['validated']:,} images are validated, and to answer the largest class always gives "
        f"{row['guess']:.4f}."
        for data, row in told.items()
    ]


def _svg(build: Callable[[], Figure], title: str) -> Markup:
    return Markup(to_svg(build, str(escape(title))))


def _curves(cost: _Rows, what: str, column: str) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, dict[float, float]] = {}
    for row in cost:
        if row.get("what") == what and float(row.get(column) or 0) > 0:  # the axes are logarithmic
            curves.setdefault(row["name"], {})[float(row["tokens"])] = float(row[column])
    return {name: sorted(points.items()) for name, points in curves.items()}


def _draw_curves(curves: dict[str, list[tuple[float, float]]], label: str) -> Figure:
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        axes.plot(*zip(*points, strict=True), _LINES[i // 10 % len(_LINES)], color=f"C{i % 10}", label=name, marker=".")
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
    axes.set_xticks(sorted({tokens for points in curves.values() for tokens, _ in points}))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.legend(fontsize=7, ncols=2, frameon=False)
    return figure


def _draw_residuals(residuals: dict[str, float]) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(residuals), list(residuals.values()), "o-")
    axes.set(yscale="log", ylabel="|A Y A - A| / |A|")
    axes.tick_params("x", rotation=30)
    return figure


def _draw_scores(rows: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(rows):
        axes.errorbar(row["seconds"], row["mean"], yerr=row["spread"] or 0, fmt="o", color=f"C{i % 10}", capsize=3)
        axes.annotate(row["name"], (row["seconds"], row["mean"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="seconds of training", ylabel=rows[0]["metric"].removeprefix("val/"))
    axes.margins(0.12)
    return figure


def _pivot(cost: _Rows, what: str) -> tuple[list[str], list[list[str]]]:
    tokens = sorted({int(row["tokens"]) for row in cost})
    names = dict.fromkeys(row["name"] for row in cost)
    cells = {(row["name"], int(row["tokens"])): row for row in cost if row.get("what") in (what, "", None)}

    def text(name: str, count: int) -> str:
        row = cells.get((name, count), {})
        if row.get("milliseconds"):
            return f"{float(row['milliseconds']):.3g} ({float(row['peak_mib']):.3g})"
        return row.get("not_measured") or ABSENT

    return ["mixer", *(f"{count:,} tokens" for count in tokens)], [[n, *(text(n, c) for c in tokens)] for n in names]


def _shown(value: Any) -> str:
    if str(value).isdigit():
        return f"{int(value):,}"
    return {"True": "yes", "False": "no", "": ABSENT}.get(str(value), str(value))
