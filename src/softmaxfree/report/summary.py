"""What is known of a run, as plain values: `summary.json`, from which its page is made."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from softmaxfree.atomic import atomic_write
from softmaxfree.machine import machine
from softmaxfree.report.mistakes import Mistakes, list_mistakes, look_for_mistakes
from softmaxfree.report.parts import Parts
from softmaxfree.tasks import SegmentationTask
from softmaxfree.tasks.loading import load_task

__all__ = [
    "SUMMARY", "Summary", "collect", "data_name", "read_config", "readable_images", "shown_labels", "title_of",
    "write_summary",
]  # fmt: skip

SUMMARY = "summary.json"
"""Its name in the folder of a run."""

Summary = dict[str, Any]
"""The content: see `collect`."""

_PICTURES = "mistakes"  # folder of the pictures
_NAMED = 10  # unreadable images of a split
_TOP = 5  # classes of which one is the right one always


def collect(
    run_dir: Path,
    task: Any,
    data: Any,
    *,
    epochs: Sequence[Mapping[str, float]],
    metrics: Mapping[str, float],
    kept: str,
    best_epoch: int | None,
    seconds: float,
    parts: Parts,
) -> Summary:
    """Gather what is known of a finished run, and write the pictures of its worst mistakes.

    The arguments are those of `softmaxfree.report.write`.

    Args:
        run_dir: folder of the run.
        task: that was trained and validated.
        data: its data module.
        epochs: rows.
        metrics: of the weights that are kept; none without a validation.
        kept: their name.
        best_epoch: from 1.
        seconds: of the training.
        parts: of the run, see `softmaxfree.report.parts`.

    Returns:
        Plain values, which `json` takes: numbers that are not finite are null.
    """
    trainer = getattr(task, "_trainer", None)
    device = trainer.strategy.root_device if trainer is not None else torch.device("cpu")
    whole, _ = load_task(run_dir / f"{kept}.ckpt")  # the task's own model may be sharded
    mistakes = Mistakes()
    if metrics:
        of_images = getattr(task, "of_timm", True)
        mistakes = look_for_mistakes(whole, data, device) if of_images else list_mistakes(task, data)
    config = read_config(run_dir)
    left_out = getattr(data, "left_out_images", {})  # those of the validation were met by now
    names = [str(name) for name in getattr(data, "class_names", ()) or range(task.hparams["num_classes"])]
    return _plain(
        {
            "version": 1,
            "task": type(task).__name__,
            "model": {
                "name": task.hparams["name"],
                "head": task.hparams.get("head", ""),
                "parameters": sum(p.numel() for p in whole.model.parameters()),
                "loaded": getattr(task, "loaded", ""),
            },
            "data": {
                "name": _data_name(config, data),
                "unit": getattr(data, "unit", "image"),
                "found": getattr(data, "found", "").replace(str(run_dir / "split.csv"), "split.csv of the run"),
                "num_images": _num_images(data),
                "left_out": {split: {"images": len(all_), "first": all_[:_NAMED]} for split, all_ in left_out.items()},
                "remarks": [*getattr(data, "remarks", ()), *getattr(task, "start_remarks", ())],
                "num_boxes": getattr(data, "num_boxes", {}),
                "also_trained_on": getattr(data, "also_trained_on", 0),
                "class_names": names,
                "class_counts": getattr(data, "class_counts", ()),
                "val_class_counts": getattr(data, "val_class_counts", ()),
                "measured_size": getattr(data, "measured_size", ()),
                "drawn_split": (run_dir / "split.csv").is_file(),
            },
            "settings": parts["settings"],
            "command": parts["parts"][0]["command"],
            "resumed": [part for part in parts["parts"] if part["resumed_from"] is not None],
            "epochs": epochs,
            "metrics": metrics,
            "labels": shown_labels(task.summary, len(names)),
            "monitor": task.monitor,
            "kept": kept,
            "best_epoch": best_epoch,
            "seconds": seconds,
            "class_scores": {name: scores.float() for name, scores in task.class_scores.items()} if metrics else {},
            "confusion": _confusion(task, data) if metrics else None,
            "tested": _tested(task, data),
            "sizes": getattr(task, "size_scores", []) if metrics else [],
            "mistakes": {
                "looked_at": mistakes.looked_at,
                "of": mistakes.of,
                "wrong": mistakes.wrong,
                "splits": mistakes.splits,
                "by": "wrong pixels" if isinstance(task, SegmentationTask) else "",
                "items": _keep_pictures(run_dir, mistakes),
            },
            "machine": machine(device) | {"processes": trainer.world_size if trainer is not None else 1},
            "remark": getattr(task, "remark", "") if metrics else "",
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "missing": [],
        }
    )


def write_summary(summary: Summary, run_dir: Path) -> None:
    """Write `summary.json`, a line a key."""
    entries = (f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False, allow_nan=False)}" for k, v in summary.items())
    with atomic_write(run_dir / SUMMARY) as part:
        text = "{\n" + ",\n".join(entries) + "\n}\n"
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escapes, for names of any bytes


def read_config(run_dir: Path) -> dict[str, Any]:
    """Return `config.yaml` of a run; empty where there is none that can be read."""
    try:
        content = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def title_of(summary: Summary) -> str:
    """Return what was trained on what."""
    model, data = summary["model"], summary["data"]["name"]
    head = f" + {model['head']}" if model["head"] else ""
    return f"{model['name']}{head} on {data}" if data else f"{model['name']}{head}"


def readable_images(summary: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of images of each split without those that could not be read."""
    left_out = summary["data"]["left_out"]
    return {
        split: images - (left_out.get(split) or {"images": 0})["images"]
        for split, images in summary["data"]["num_images"].items()
    }


def data_name(config: Mapping[str, Any]) -> str:
    """Return what the data is called: its name, its folder or table, or the kind of data where that is embedded."""
    given = config.get("data") or {}
    if "/" in str(given.get("source") or ""):  # of which root is the cache
        return str(given["source"]).rpartition("/")[2]
    if root := given.get("root") or given.get("features"):
        return Path(str(root)).expanduser().absolute().name
    if table := given.get("train_json") or given.get("train_csv"):
        return Path(str(table)).stem
    kind = str(config.get("datamodule", "")).rpartition(".")[2].removesuffix("DataModule")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind).lower()


def shown_labels(labels: Mapping[str, Any], num_classes: float) -> dict[str, Any]:
    """Return the labels without that of top-5 where no more classes are than six: it is near 100 % always."""
    return {name: label for name, label in labels.items() if name != "val/top5" or num_classes > _TOP + 1}


def _data_name(config: Mapping[str, Any], data: Any) -> str:
    return data_name(config) or data_name({"datamodule": type(data).__name__})


def _num_images(data: Any) -> dict[str, int]:
    told = getattr(data, "num_images", None)
    if told is not None:
        return dict(sorted(told.items()))  # train first
    sizes = {}
    for split, loader in (("train", data.train_dataloader), ("val", data.val_dataloader)):
        try:
            sizes[split] = len(loader().dataset)
        except TypeError:  # a stream
            continue
    return sizes


def _confusion(task: Any, data: Any) -> dict[str, Any] | None:
    """The counts that are not zero, which of very many classes are few."""
    if (metric := getattr(task, "confusion", None)) is None:
        return None
    of = "pixels" if isinstance(task, SegmentationTask) else f"{getattr(data, 'unit', 'image')}s"
    return _cells(metric.compute(), of)


def _tested(task: Any, data: Any) -> dict[str, Any] | None:
    """Scores of each class and the confusion matrix of a test."""
    found = task.tested_classes() if hasattr(task, "tested_classes") else None
    if found is None:
        return None
    scores, confusion = found
    return {"class_scores": scores, "confusion": _cells(confusion, f"{data.unit}s")}


def _cells(confusion: Tensor, of: str) -> dict[str, Any]:
    counts = confusion.cpu().numpy()
    cells = [[int(i), int(j), int(counts[i, j])] for i, j in np.argwhere(counts)]
    return {"of": of, "classes": len(counts), "cells": cells}


def _keep_pictures(run_dir: Path, mistakes: Mistakes) -> list[dict[str, Any]]:
    """Writes the pictures in the place of those of an earlier part of the run; returns the items with their names."""
    for earlier in (run_dir / _PICTURES).glob("*-*.jpg"):
        earlier.unlink()
    items = []
    for number, (item, pictures) in enumerate(zip(mistakes.items, mistakes.pictures, strict=True), 1):
        names = {}
        for what, picture in pictures.items():
            names[what] = f"{_PICTURES}/{number}-{what}.jpg"
            with atomic_write(run_dir / names[what]) as part:
                picture.save(part, quality=90)
        items.append({**item, "pictures": names})
    return items


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
