"""HTML pages from templates: one file, which needs nothing else and runs no script."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from softmaxfree.atomic import atomic_write
from softmaxfree.drawing import colour, is_background
from softmaxfree.report.confusion import LABELLED, draw_confusion, most_confused
from softmaxfree.report.curves import TRAINING_LOSS, Curve, curves_of, draw_curves, is_logarithmic, panels_of
from softmaxfree.report.figures import to_svg
from softmaxfree.report.findings import confusion_counts, counts_of, findings, unit_of
from softmaxfree.report.meanings import meaning, meaning_of_column
from softmaxfree.report.summary import Summary, read_config, readable_images, title_of

__all__ = ["ABSENT", "curve_figures", "is_ours", "render", "run_page", "score_text", "value_text"]

_MARK = b'<meta name="generator" content="softmaxfree report">'
_SOFTENERS = ("model.label_smoothing", "model.mixup", "model.cutmix")  # which the validation loss is without
_OPEN_CLASSES = 30  # rows of a table that are shown at once
_COUNTED = {"ClassificationTask": "images", "SegmentationTask": "pixels"}  # other tasks: boxes
ABSENT = "\N{EN DASH}"
"""In the place of a number that there is not."""


def render(template: str, page: Path, **content: Any) -> None:
    """Write a page.

    Args:
        template: its name.
        page: the file.
        **content: what the template names.
    """
    environment = Environment(
        loader=PackageLoader("softmaxfree.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"thousands": _thousands, "duration": duration, "readable_images": readable_images}
    text = environment.get_template(template).render(**content)
    with atomic_write(page) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files of any bytes


def is_ours(path: Path) -> bool:
    """Return whether a file is a page that `render` wrote."""
    with path.open("rb") as file:
        return _MARK in file.read(4096)


def run_page(summary: Summary, run_dir: Path, page: Path) -> None:
    """Write the page of a run.

    Args:
        summary: of the run.
        run_dir: its folder, in which the pictures of its mistakes and its configuration are.
        page: the file.
    """
    counts = confusion_counts(summary)
    title = title_of(summary)
    names = summary["data"]["class_names"]
    config = run_dir / "config.yaml"
    tested = summary["tested"]
    test_counts = counts_of(tested["confusion"]) if tested else None
    curves = curves_of(summary["epochs"], {**TRAINING_LOSS, **summary["labels"]})
    render(
        "run.html",
        page,
        title=title,
        run=summary,
        folder=str(run_dir),
        findings=findings(summary),
        scores=[
            {
                "label": label.removesuffix(" (%)"),
                "text": score_text(summary, name),
                "meaning": meaning(name),
                "decides": name == summary["monitor"],
            }
            for name, (label, _, _) in summary["labels"].items()
            if summary["metrics"].get(name) is not None
        ],
        absent=[
            label.removesuffix(" (%)")
            for name, (label, _, _) in summary["labels"].items()
            if name in summary["metrics"] and summary["metrics"][name] is None
        ],
        figures=curve_figures(curves, title),
        logarithmic=any(map(is_logarithmic, panels_of(curves).values())),
        softened=[key for key in _SOFTENERS if (read_config(run_dir).get("model") or {}).get(key.partition(".")[2])],
        classes=_class_rows(summary, summary["class_scores"], counts),
        test_classes=_class_rows(summary, tested["class_scores"], test_counts) if tested else [],
        counted=_COUNTED.get(summary["task"]) or (f"{unit_of(summary)}s" if counts is not None else "boxes"),
        columns=[(name, meaning_of_column(name)) for name in summary["class_scores"]],
        open_classes=_OPEN_CLASSES,
        matrix=_matrix(f"Confusion matrix of {title}", names, counts),
        test_matrix=_matrix(f"Confusion matrix of the test of {title}", names, test_counts),
        labelled=counts is not None and len(counts) <= LABELLED,
        mistakes=[_with_pictures(item, run_dir, names) for item in summary["mistakes"]["items"]],
        legend=_legend(summary, names),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def curve_figures(curves: Sequence[Curve], title: str, logarithmic: bool | None = None) -> list[Markup]:
    """Return a picture of each panel; as `draw_curves` otherwise."""
    figures = []
    for panel, shown in panels_of(curves).items():
        what = ", ".join(curve.label for curve in shown)
        description = str(escape(f"{title}: {what} over the epochs"))
        draw = partial(draw_curves, {panel: shown}, "", width=4.8, height=3.3, logarithmic=logarithmic)
        figures.append(Markup(to_svg(draw, description)))
    return figures


def score_text(summary: Summary, name: str) -> str:
    """Return a metric as its task shows it, with its unit."""
    return value_text(summary["metrics"].get(name), summary["labels"][name])


def value_text(value: float | None, label: Sequence[Any]) -> str:
    """Return a number as a task shows it, by the label, factor and digits of its metric."""
    name, factor, digits = label
    unit = "\N{NO-BREAK SPACE}%" if name.endswith("(%)") else ""
    return ABSENT if value is None else f"{factor * value:.{digits}f}{unit}"


def duration(seconds: float | None) -> str:
    """Return a time in the two largest units."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days} d {h} h" if days else f"{hours} h {m} min" if hours else f"{minutes} min {s} s"


def _thousands(number: float | None) -> str:
    return ABSENT if number is None else f"{number:,}"


def _matrix(description: str, names: Sequence[str], counts: Any) -> dict[str, Any] | None:
    """The picture of a confusion matrix, and what is confused most."""
    if counts is None:
        return None
    picture = Markup(to_svg(partial(draw_confusion, counts, names, ""), str(escape(description))))
    return {"picture": picture, "confused": [(names[i], names[j], n) for i, j, n in most_confused(counts, 10)]}


def _class_rows(summary: Summary, class_scores: Mapping[str, Any], counts: Any) -> list[dict[str, Any]]:
    """A row a class, those with the lowest score first where not all are shown at once."""
    names, trained = summary["data"]["class_names"], summary["data"]["class_counts"]
    validated = summary["data"]["val_class_counts"]
    rows = []
    for i, name in enumerate(names):
        scores = [column[i] for column in class_scores.values()]
        row = {
            "name": name,
            "trained": trained[i] if trained else None,
            "scores": scores,
            "taken": "",
            "validated": validated[i] if validated else None,
        }
        if counts is not None:
            row["validated"] = int(counts[i].sum())
            others = counts[i].copy()
            others[i] = 0
            if others.any():
                most = int(others.argmax())
                row["taken"] = f"{names[most]} ({100 * others[most] / counts[i].sum():.1f} %)"
        rows.append(row)
    if len(rows) > _OPEN_CLASSES and class_scores:
        rows.sort(key=lambda row: (row["scores"][-1] is None, row["scores"][-1]))
    return rows


def _legend(summary: Summary, names: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and name of each class in the pictures of the mistakes."""
    there = sorted({label for item in summary["mistakes"]["items"] for label in item.get("classes", ())})
    painted = [i for i in there if summary["task"] != "SegmentationTask" or not is_background(names[i])]
    return [("#{:02x}{:02x}{:02x}".format(*colour(i)), names[i]) for i in painted]


def _with_pictures(item: dict[str, Any], run_dir: Path, names: Sequence[str]) -> dict[str, Any]:
    """A mistake with its pictures inside and its classes by name."""
    pictures = {
        what: "data:image/jpeg;base64," + base64.b64encode((run_dir / file).read_bytes()).decode()
        for what, file in item["pictures"].items()
        if (run_dir / file).is_file()
    }
    named: dict[str, Any] = {key: names[item[key]] for key in ("true", "predicted") if key in item}
    listed: dict[str, Any] = {
        key: ", ".join(f"{count}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN} {names[label]}" for label, count in item[key])
        for key in ("missed", "false")
        if key in item
    }
    return {**item, **named, **listed, "pictures": pictures}
