"""The page of a run: errors of blocks, likeness of features and maps after each step, time and memory."""

from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from softmaxfree.report.figures import to_svg
from softmaxfree.report.page import ABSENT, render

__all__ = ["PAGE", "write_page"]

PAGE = "report.html"
"""Its name in the folder of a run."""

_STAGES = {"swap": "swapped", "blocks": "blocks learned", "features": "features learned", "labels": "with labels"}
_LIKENESS = (
    "Cosine of the student's features with the teacher's on {} held-out pictures: of the class token, or of the mean "
    "where there is none; around the teacher's mean over the pictures; of the patches. Different pictures are alike, "
    "too: 'different' is the teacher's cosine of one with another. The probe is a logistic regression on the teacher's "
    "features, used unchanged on the student's; the head is the student's own."
)
_MAPS = (
    "On one held-out picture, means over heads. Locality is the distance in patches between a query and what it "
    "attends to; rank is the exponential of the entropy of the singular values."
)


def write_page(told: dict[str, Any], out: Path) -> Path:
    """Write the page.

    Args:
        told: what `load_measures` returns.
        out: folder of the run.

    Returns:
        The page.
    """
    settings, about, rows = told["settings"], told["about"], told["measures"]
    figures = []
    if told["errors"]:
        title = "Error of the attention of each block on held-out pictures"
        figures.append((title, _svg(partial(_draw_errors, told["errors"]), title)))
    for what, index in (("locality, patches", 0), ("rank", 1)):
        if any(row["maps"] for row in rows):
            title = f"{what.partition(',')[0].capitalize()} of the maps of each block"
            figures.append((title, _svg(partial(_draw_maps, rows, index, what), title)))
    page = out / PAGE
    render(
        "mixers.html",
        page,
        title=f"{told['teacher']}, linear with {settings['mixer']}",
        version=about.get("softmaxfree", ""),
        about=about,
        figures=figures,
        scores=[],
        transfer=[],
        slopes=[],
        tables=[_likeness(rows), _blocks(told["errors"]), *_shapes(rows), _costs(told["costs"])],
    )
    return page


def _svg(build: Any, title: str) -> Markup:
    return Markup(to_svg(build, str(escape(title))))


def _likeness(rows: list[dict[str, Any]]) -> tuple[str, str, list[str], list[list[str]]]:
    keys = {"raw": "cosine", "median": "median", "centred": "centred", "between": "different", "patches": "patches"}
    shares = {"probe_student": "probe", "probe_teacher": "teacher's", "agreement": "agree", "head": "head"}
    shares = {key: name for key, name in shares.items() if any(row.get(key) is not None for row in rows)}
    shown = [
        [
            _STAGES[row["stage"]],
            str(row["size"]),
            *(f"{row[key]:.3f}" if row[key] is not None else ABSENT for key in keys),
            *(f"{row[key]:.1%}" if row.get(key) is not None else ABSENT for key in shares),
        ]
        for row in rows
    ]
    note = _LIKENESS.format(rows[0]["pictures"])
    return "Features", note, ["step", "pixels", *keys.values(), *shares.values()], shown


def _blocks(errors: list[Any]) -> tuple[str, str, list[str], list[list[str]]]:
    note = "Squared error of the attention, relative to its size; what learned is put back where the error grew."
    shown = [[str(i), f"{before:.2g}", f"{after:.2g}", "" if kept else "yes"] for i, before, after, kept in errors]
    return "Blocks", note, ["block", "after the swap", "learned", "reverted"], shown


def _shapes(rows: list[dict[str, Any]]) -> list[tuple[str, str, list[str], list[list[str]]]]:
    tables = []
    for size in dict.fromkeys(row["size"] for row in rows):
        own = _series([row for row in rows if row["size"] == size])
        if own:
            blocks = range(max(len(maps) for _, maps in own))
            shown = [[str(i), *(f"{maps[i][0]:.2f}, {maps[i][1]:.1f}" for _, maps in own)] for i in blocks]
            head = ["block: locality, rank", *(name for name, _ in own)]
            tables.append((f"Maps at {size} pixels", _MAPS, head, shown))
    return tables


def _costs(costs: list[dict[str, float]]) -> tuple[str, str, list[str], list[list[str]]]:
    note = "One image, forward pass to the final features, teacher and student in turn; memory beyond the weights."
    shown = [
        [
            f"{row['size']:.0f}",
            f"{row['speedup']:.2f}",
            *(f"{row[f'{who}_ms']:,.0f}" for who in ("teacher", "student")),
            *(f"{row[f'{who}_mib']:,.0f}" for who in ("teacher", "student")),
        ]
        for row in costs
    ]
    heads = ["pixels", "times as fast", "teacher, ms", "student, ms", "teacher, MiB", "student, MiB"]
    return "Time and memory", note, heads, shown


def _series(rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Maps of the teacher and of the student after each step."""
    first = [("teacher", row["teacher_maps"]) for row in rows if row.get("teacher_maps")]
    return [*first[:1], *((_STAGES[row["stage"]], row["maps"]) for row in rows if row["maps"])]


def _draw_errors(errors: list[Any]) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    places = [row[0] for row in errors]
    axes.bar([place - 0.2 for place in places], [row[1] for row in errors], 0.4, label="after the swap", color="C7")
    axes.bar([place + 0.2 for place in places], [row[2] for row in errors], 0.4, label="learned", color="C0")
    axes.set(xlabel="block", ylabel="relative squared error", yscale="log")
    axes.set_xticks(places)
    axes.legend(frameon=False)
    return figure


def _draw_maps(rows: list[dict[str, Any]], index: int, label: str) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    size = next(row["size"] for row in rows if row["maps"])
    for i, (name, maps) in enumerate(_series([row for row in rows if row["size"] == size])):
        axes.plot(range(len(maps)), [pair[index] for pair in maps], marker=".", label=name, color=f"C{i}")
    axes.set(xlabel="block", ylabel=f"{label} ({size} pixels)")
    axes.legend(frameon=False)
    return figure
