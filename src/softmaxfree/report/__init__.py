"""What remains of a run for the eye: a page, pictures, and a comparison of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softmaxfree.machine import machine
from softmaxfree.report.comparison import PAGE, compare
from softmaxfree.report.confusion import draw_confusion
from softmaxfree.report.curves import TRAINING_LOSS, curves_of, draw_curves, panels_of
from softmaxfree.report.figures import save_png
from softmaxfree.report.findings import confusion_counts
from softmaxfree.report.page import run_page
from softmaxfree.report.parts import note_part
from softmaxfree.report.summary import collect, title_of, write_summary

__all__ = ["PAGE", "compare", "machine", "note_part", "write"]


def write(
    run_dir: str | Path,
    task: Any,
    data: Any,
    *,
    epochs: Sequence[Mapping[str, float]],
    metrics: Mapping[str, float],
    kept: str,
    best_epoch: int | None,
    seconds: float,
    command: str,
    settings: Mapping[str, tuple[Any, str]],
    resumed_from: int | None = None,
) -> Path:
    """Write what a finished run has to show, into its folder.

    That is `report.html`, one file that needs nothing else, `summary.json` with every number in it, the pictures of
    the worst mistakes that the page shows, `curve.png`, and `confusion_matrix.png` of a classifier.

    Args:
        run_dir: the folder, with the checkpoint of the weights that are kept, and `config.yaml`.
        task: that was trained, and after that validated with those weights.
        data: its data module.
        epochs: rows of an `EpochRecord`.
        metrics: of the weights that are kept; empty without a validation.
        kept: name of their checkpoint: "best" or "last".
        best_epoch: theirs, from 1; None without a validation.
        seconds: of the training.
        command: that began the run, or the part of it that was resumed.
        settings: value of each, and "given", the file that gives it, or why it was decided so; those of earlier parts
            are in the folder.
        resumed_from: finished epochs that the last part went on from; None for a run in one part. See `note_part`.

    Returns:
        The page.

    Raises:
        OSError: the disk is full.
    """
    run_dir = Path(run_dir)
    summary = collect(
        run_dir,
        task,
        data,
        epochs=epochs,
        metrics=metrics,
        kept=kept,
        best_epoch=best_epoch,
        seconds=seconds,
        parts=note_part(run_dir, settings, command, resumed_from),
    )
    title = title_of(summary)
    if panels := panels_of(curves_of(summary["epochs"], {**TRAINING_LOSS, **summary["labels"]})):
        save_png(lambda: draw_curves(panels, title), run_dir / "curve.png")
    counts = confusion_counts(summary)
    if counts is not None:
        right, of = int(counts.trace()), summary["confusion"]["of"]
        heading = f"{title}: {right:,} of {int(counts.sum()):,} {of} right"
        names = summary["data"]["class_names"]
        save_png(lambda: draw_confusion(counts, names, heading), run_dir / "confusion_matrix.png")
    write_summary(summary, run_dir)
    run_page(summary, run_dir, run_dir / PAGE)
    return run_dir / PAGE
