"""What is known of a run from its folder, also of one that did not finish or is of an earlier version."""

import csv
import importlib
import json
import math
import shlex
from pathlib import Path
from typing import Any

from softmaxfree.errors import InputError
from softmaxfree.report.summary import SUMMARY, Summary, data_name, read_config, shown_labels

__all__ = ["read_run"]

_CONFIG, _METRICS = "config.yaml", "metrics.csv"
_KEYS = (
    "task", "model", "data", "settings", "command", "epochs", "metrics", "labels", "monitor", "kept", "best_epoch",
    "seconds", "class_scores", "confusion", "mistakes", "machine", "remark", "finished", "missing",
)  # fmt: skip

_LATER: dict[str, Any] = {  # of the data, which earlier versions did not write
    "left_out": {},
    "remarks": [],
    "also_trained_on": 0,
    "num_boxes": {},
    "val_class_counts": [],
    "measured_size": [],
}


def read_run(run_dir: str | Path) -> Summary:
    """Return the summary of a run; where that is missing, what `config.yaml` and `metrics.csv` tell.

    Args:
        run_dir: its folder.

    Returns:
        As `softmaxfree.report.summary.collect` does; `missing` says what is not known.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: it is no folder of a run, or its files are broken.
    """
    folder = Path(run_dir)
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder of the run")
    if (folder / SUMMARY).is_file():
        return _read_summary(folder / SUMMARY)
    if not (folder / _CONFIG).is_file():
        inside = sorted(path.name for path in folder.iterdir() if (path / _CONFIG).is_file())
        if inside:
            raise InputError(f"{folder} holds the runs {', '.join(inside)}; give one or more of them")
        raise InputError(f"{folder} is no folder of a run: it has neither {SUMMARY} nor {_CONFIG}")
    return _without_summary(folder)


def _read_summary(file: Path) -> Summary:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}") from error
    if not isinstance(summary, dict) or summary.get("version") != 1:
        raise InputError(f"{file} is not of a run of softmaxfree, or of a later version of it")
    if lacking := [key for key in _KEYS if key not in summary]:
        raise InputError(f"{file} is not whole: it lacks {', '.join(lacking)}")
    summary["data"] = _LATER | summary["data"]
    return {"resumed": [], "tested": None, **summary}


def _without_summary(folder: Path) -> Summary:
    config = read_config(folder)
    if not config:
        raise InputError(f"{folder / _CONFIG} cannot be read")
    rows = _read_metrics(folder / _METRICS)
    task, known_task = str(config.get("task", "")).rpartition(".")[2], _class_of(config, "task")
    model, trainer = config.get("model") or {}, config.get("trainer") or {}
    measured = {name for row in rows for name in row if name.startswith("val/")}
    known = {name: label for name, label in getattr(known_task, "summary", {}).items() if name in measured}
    others = sorted(measured - known.keys())
    labels = known | {name: (name, 1 if name.endswith("loss") else 100, 2) for name in others}
    labels = shown_labels(labels, model.get("num_classes") or math.inf)
    monitor = getattr(known_task, "monitor", "val/segm_map" if "val/segm_map" in labels else "val/map")
    scored = [row for row in rows if row.get(monitor) is not None]
    kept = next((name for name in ("best", "last") if (folder / f"{name}.ckpt").exists()), "")
    best = max(scored, key=lambda row: (row[monitor], -row.get("val/loss", 0), row["epoch"]), default=None)
    if kept == "last":  # its scores are those of the last epoch
        best = rows[-1] if rows and rows[-1] in scored else None
    planned = trainer.get("max_epochs")
    told = (
        f"{len(rows)} of {planned} epochs are"
        if isinstance(planned, int) and planned > 0
        else f"{len(rows)} epochs are"
    )
    return {
        "version": 1,
        "task": task,
        "model": {"name": model.get("name", "?"), "head": model.get("head") or "", "parameters": None, "loaded": ""},
        "data": {
            "name": data_name(config),
            "unit": getattr(_class_of(config, "datamodule"), "unit", "image"),
            "found": "",
            "num_images": {},
            "class_names": [str(i) for i in range(model.get("num_classes") or 0)],
            "class_counts": [],
            **_LATER,
            "drawn_split": (folder / "split.csv").is_file(),
        },
        "settings": {},
        "command": f"softmaxfree train {shlex.quote(str(folder / _CONFIG))}",
        "resumed": [],
        "epochs": rows,
        "metrics": {name: best[name] for name in labels if name in best} if best else {},
        "labels": {name: list(label) for name, label in labels.items()},
        "monitor": monitor,
        "kept": kept,
        "best_epoch": int(best["epoch"]) + 1 if best else None,
        "seconds": sum(row.get("seconds") or 0 for row in rows) if rows else None,
        "class_scores": {},
        "confusion": None,
        "tested": None,
        "mistakes": {"looked_at": 0, "of": None, "wrong": 0, "items": []},
        "machine": {},
        "remark": "",
        "finished": "",
        "missing": [
            f"There is no {SUMMARY} in {folder}: the run has not finished, or an earlier version made it. {told} in "
            f"{_METRICS}.",
            "Scores of each class, the confusion matrix, the worst mistakes, the number of parameters, the weights it "
            "started from and the machine are not known.",
        ],
    }


def _class_of(config: dict[str, Any], key: str) -> Any:
    """The task or data module of a run if it is one of ours; nothing else is imported."""
    module, _, name = str(config.get(key, "")).rpartition(".")
    if not module.startswith("softmaxfree."):
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:  # of another version
        return None


def _read_metrics(file: Path) -> list[dict[str, float]]:
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(f"{file} is no table of numbers: {error}") from error
    return [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]
