"""A page that compares runs."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from softmaxfree.errors import InputError
from softmaxfree.replacing import require_free
from softmaxfree.report.curves import TRAINING_LOSS, curves_of, is_logarithmic
from softmaxfree.report.differences import different_settings
from softmaxfree.report.meanings import meaning
from softmaxfree.report.page import ABSENT, curve_figures, is_ours, render, run_page, value_text
from softmaxfree.report.reading import read_run
from softmaxfree.report.summary import SUMMARY, Summary, readable_images, title_of

__all__ = ["FOLDS", "PAGE", "compare"]

PAGE = "report.html"
"""Its name in the folder of a run, or of runs."""

FOLDS = "folds.json"
"""Its name in a folder of folds: the settings that all of them have."""

_CHANCES = ({"run.seed"}, {"data.fold"})
"""Settings by which runs differ that are one experiment: their mean and spread tell more than the best."""

_READ = (SUMMARY, "config.yaml", "metrics.csv")


def compare(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of a run again, or one page that compares several runs.

    Args:
        runs: their folders; a folder of folds stands for its runs.
        out: the page; None is `report.html` in the folder of the run, or in the deepest folder that holds all of them.

    Returns:
        The page.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: a folder is not that of a run, or `out` is a file that `softmaxfree report` has not written.
        OSError: the page cannot be written.
    """
    folders = [folder for run in runs for folder in _runs_of(Path(run))]
    if not folders:
        raise InputError("name the folder of a run, or of several to compare them")
    real = [os.path.realpath(folder) for folder in folders]
    if twice := [folder for i, folder in enumerate(folders) if real[i] in real[:i]]:
        raise InputError(f"{twice[0]} is given twice")
    summaries = [read_run(folder) for folder in folders]
    page = Path(out) if out is not None else _place(folders, real)
    require_free([page], [f for folder in folders for name in _READ if (f := folder / name).is_file()], is_ours)
    if len(folders) == 1:
        run_page(summaries[0], folders[0], page)
    else:
        _compare(folders, summaries, page)
    return page


def _runs_of(folder: Path) -> list[Path]:
    """The runs in a folder of folds, in their order; of any other folder itself."""
    if not (folder / FOLDS).is_file():
        return [folder]
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def _place(folders: Sequence[Path], real: Sequence[str]) -> Path:
    """Beside the runs; where only the root of the file system holds them all, in the working folder."""
    if len(folders) == 1:
        return folders[0] / PAGE
    common = Path(os.path.commonpath([os.path.dirname(folder) for folder in real]))
    if common == common.parent:
        return Path(PAGE)
    here = Path.cwd()
    return (common.relative_to(here) if common.is_relative_to(here) else common) / PAGE


def _compare(folders: Sequence[Path], summaries: Sequence[Summary], page: Path) -> None:
    names = _short_names(folders)
    tasks = dict.fromkeys(summary["task"] for summary in summaries)
    titles = list(dict.fromkeys(title_of(summary) for summary in summaries))
    different = different_settings(folders)
    spread = {key for key, _ in different} if {key for key, _ in different} in _CHANCES else set[str]()
    marked = _alike(summaries) and "data.fold" not in spread  # which are measured on other slides
    title = f"{len(folders)} runs of {titles[0]}" if len(titles) == 1 else f"{len(folders)} runs"
    render(
        "comparison.html",
        page,
        title=title,
        version="",
        names=names,
        runs=summaries,
        titles=[title_of(summary) for summary in summaries],
        tasks=[task.removesuffix("Task").lower() for task in tasks],
        alike=_alike(summaries),
        marked=marked,
        scores=[row for task in tasks for row in _score_rows(task, summaries, len(tasks) > 1, marked)],
        different=different,
        spread=sorted(spread),
        figures=[figure for task in tasks for figure in _figures(task, names, summaries, len(tasks) > 1)],
    )


def _labels(task: str, summaries: Sequence[Summary]) -> dict[str, tuple[str, float, int]]:
    """Those of all runs of a task."""
    labels: dict[str, tuple[str, float, int]] = {}
    for summary in sorted(summaries, key=lambda own: bool(own["missing"])):  # labels of an unfinished run are guessed
        if summary["task"] == task:
            labels = {name: tuple(label) for name, label in summary["labels"].items()} | labels
    return labels


def _label(label: str, task: str, several: bool) -> str:
    label = label.removesuffix(" (%)")
    return f"{label}, {task.removesuffix('Task').lower()}" if several else label


def _figures(task: str, names: Sequence[str], summaries: Sequence[Summary], several: bool) -> list[tuple[str, Any]]:
    """Label and picture of each metric that a run of a task has, a curve a run; all losses on axes of one kind."""
    labels = {**TRAINING_LOSS, **_labels(task, summaries)}
    metrics = {
        name: [
            replace(curve, label=run)
            for run, summary in zip(names, summaries, strict=True)
            if summary["task"] == task
            for curve in curves_of(summary["epochs"], {name: label})
        ]
        for name, label in labels.items()
    }
    losses = [curves for name, curves in metrics.items() if name.endswith("loss") and curves]
    positive = all(value > 0 for curves in losses for curve in curves for value in curve.values)
    logarithmic = positive and any(map(is_logarithmic, losses))
    return [
        (_label(labels[name][0], task, several), figure)
        for name, curves in metrics.items()
        for figure in curve_figures(curves, labels[name][0], logarithmic)
    ]


def _alike(summaries: Sequence[Summary]) -> bool:
    """Whether the runs of each task may have validated on the same images: on as many, where that is known."""
    known = {(s["task"], readable_images(s).get("val")) for s in summaries if not s["missing"]}
    return len(known) == len({task for task, _ in known})


def _score_rows(task: str, summaries: Sequence[Summary], several: bool, marked: bool) -> list[dict[str, Any]]:
    """A row each metric of a task; runs of other tasks have no value in it, and of equal values none is the best."""
    rows = []
    for name, label in _labels(task, summaries).items():
        own = [s if s["task"] == task and name in s["labels"] else None for s in summaries]
        values = [summary["metrics"].get(name) if summary else None for summary in own]
        if not (known := [value for value in values if value is not None]):
            continue
        best = (min if name.endswith("loss") else max)(known) if marked and len(set(known)) > 1 else None
        texts = [value_text(value, label) for value in values]
        rows.append(
            {
                "label": _label(label[0], task, several),
                "meaning": meaning(name),
                "of_test": name.startswith("test/"),
                "known": len(known),
                "mean": value_text(statistics.mean(known), label),
                "sd": value_text(statistics.stdev(known), label) if len(known) > 1 else ABSENT,
                "cells": [
                    (text, best is not None and value == best) for text, value in zip(texts, values, strict=True)
                ],
            }
        )
    return rows


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ, with the folder of the runs: that of a run is a number."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    for length in range(2, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
