"""Accuracy after equal training: `softmaxfree train`, once for each variant and seed, in a process of its own."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softmaxfree.compare.studies import Variant
from softmaxfree.errors import InputError
from softmaxfree.report.findings import confusion_counts
from softmaxfree_cli.keys import check_keys
from softmaxfree_cli.recipes import read_recipe, recipe_of

__all__ = ["RECIPES", "Failed", "NotBegun", "check_options", "train", "validate"]

_OWN = ("run.seed", "data.root", "model.model_args")  # set for each training
_MENDABLE = 2  # exit code of a command for what the user can mend
_FAILED = "failed.txt"
_STOPPED, _KILLED = (130, 143, -2, -15), (137, -9)
_OF_MIXERS = ("last_stage", "landmark_sampling", "landmark_grid", "solver", "normalize", "mixer", "mixer_args")

_OF_FOLDERS = "classification"
RECIPES = {"digits": "digits", "solar_cells": "solar_cells", "scenes": "scenes_segmentation"}
"""Of embedded data; other data is a folder of images in folders of classes."""


class Failed(InputError):
    """A command ended with an error.

    Args:
        message: with the line that tells most.
        code: its exit code.
        lines: all that it said.
    """

    def __init__(self, message: str, code: int, lines: str = "") -> None:
        super().__init__(message)
        self.code, self.lines = code, lines


class NotBegun(InputError):
    """A training did not begin for a reason to mend, or was killed: this says nothing of its mixer."""


def check_options(options: Mapping[str, Any], data: Sequence[str]) -> None:
    """Refuses settings that are no keys of the recipes, and those that would change what a row claims.

    Args:
        options: by key, `section.key`.
        data: as for `train`.

    Raises:
        InputError: there is such a key.
    """
    for key in options:
        name = key.removeprefix("model.model_args.")
        if key in _OWN or (name != key and name.startswith(_OF_MIXERS)):
            raise InputError(f"options: {key} is set by the comparison itself; leave it out")
    for recipe in dict.fromkeys(RECIPES.get(name, _OF_FOLDERS) for name in data):
        content = dict(read_recipe(recipe))
        for key, value in options.items():
            section, _, name = key.partition(".")
            content[section] = {**(content.get(section) or {}), name.partition(".")[0]: value}
        try:
            check_keys(content, ())
        except InputError as error:
            raise InputError(f"options: {error} (recipe {recipe})") from error


def train(variant: Variant, data: str, seed: int, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Trains a network with the mixer in all stages, or goes on with a run that was interrupted.

    Args:
        variant: what to train.
        data: a key of `RECIPES`, or a folder of images.
        seed: of the run.
        folder: the runs of this variant and seed.
        options: further settings of the recipe.

    Returns:
        `metric`, its `score`, of a classifier `validated` (images) and `guess` (the score of answering the largest
        class always), `best_epoch`, `seconds` of training, `parameters` of the network, and the `threads` it was
        trained with.

    Raises:
        Failed: the training fails; tells the last line, and leaves all of them in `failed.txt` in the folder.
        NotBegun: it cannot begin, or leaves no score, with these settings; or it was killed.
    """
    run = _finished(folder)
    if run is None:
        interrupted = next((run for run in _begun(folder) if (run / "last.ckpt").exists()), None)
        for path in folder.glob("*"):
            if path.name.isdigit() and path != interrupted:  # ended before its first epoch did
                shutil.rmtree(path)
        recipe = RECIPES.get(data, _OF_FOLDERS)
        command = [sys.executable, "-m", "softmaxfree", "train", recipe]
        command += ["--out", str(folder), "--run.seed", str(seed)]
        command += ["--model.model_args", json.dumps(_model_args(variant, recipe))]
        if data not in RECIPES:
            command += ["--data.root", data]
        for key, value in options.items():
            command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        if interrupted is not None:
            command += ["--resume", str(interrupted)]
        try:
            _call(command)
        except Failed as error:
            if error.code == _MENDABLE and not _begun(folder):
                raise NotBegun(str(error)) from error
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _FAILED).write_text(error.lines, encoding="utf-8")
            raise Failed(f"{error}; all lines are in {folder / _FAILED}", error.code, error.lines) from error
        run = _finished(folder)
        if run is None:
            raise NotBegun("the training left no summary; see trainer.fast_dev_run in options")
    summary = _summary(run)
    metric = summary["monitor"]
    if metric not in summary["metrics"]:
        raise NotBegun(f"the training has no score {metric}; see trainer.limit_val_batches in options")
    return {
        "metric": metric,
        "score": summary["metrics"][metric],
        **_guess(summary),
        "best_epoch": summary["best_epoch"],
        "seconds": round(summary["seconds"], 1),
        "parameters": summary["model"]["parameters"],
        "threads": summary["machine"]["threads"],
    }


def validate(folder: Path, img_size: int) -> dict[str, Any]:
    """Returns the score of a trained variant at another image size.

    Args:
        folder: as for `train`.
        img_size: side of the validation images, pixels.

    Returns:
        `score`, in the unit of `train`, and `threads`.

    Raises:
        Failed: the validation fails; tells its last line.
        InputError: the training failed.
        NotBegun: there was none.
    """
    run = _finished(folder)
    if run is None:
        if _begun(folder):
            raise InputError("its training failed")
        raise NotBegun("its training did not begin")
    out = _call([sys.executable, "-m", "softmaxfree", "validate", str(run), "--data.img_size", str(img_size)])
    summary = _summary(run)
    label, scale, _ = summary["labels"][summary["monitor"]]
    (line,) = (line for line in out.splitlines() if line.startswith(f"{label} "))
    return {"score": round(float(line.split()[-1]) / scale, 6), "threads": summary["machine"]["threads"]}


def _begun(folder: Path) -> list[Path]:
    """The runs of a variant and seed, the newest first; until it begins a run has no config.yaml."""
    runs = [path.parent for path in folder.glob("*/config.yaml") if path.parent.name.isdigit()]
    return sorted(runs, key=lambda run: int(run.name), reverse=True)


def _finished(folder: Path) -> Path | None:
    return next((run for run in _begun(folder) if (run / "summary.json").is_file()), None)


def _summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def _guess(summary: dict[str, Any]) -> dict[str, Any]:
    counts = confusion_counts(summary) if summary["monitor"] == "val/top1" else None
    if counts is None or not counts.sum():
        return {"validated": "", "guess": ""}
    return {"validated": int(counts.sum()), "guess": round(float(counts.sum(1).max() / counts.sum()), 6)}


def _model_args(variant: Variant, recipe: str) -> dict[str, Any]:
    """What a recipe says of the network, with this mixer in all stages in place of its own."""
    said = read_recipe(recipe_of(recipe))["model"].get("model_args") or {}
    kept = {key: value for key, value in said.items() if key not in _OF_MIXERS}
    return {**kept, "mixer": variant.mixer, "mixer_args": dict(variant.arguments)}


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        if done.returncode in _STOPPED:
            raise KeyboardInterrupt
        if done.returncode in _KILLED:
            raise NotBegun(f"{' '.join(command[2:5])} was killed; the system does that where memory does not suffice")
        said = done.stderr.strip() or done.stdout.strip() or "no word"
        name = " ".join(command[2:5])
        lines = said.splitlines()
        # under a traceback stands a note of the command, and above it what happened
        last = lines[-2] if len(lines) > 1 and lines[-1].startswith(f"{' '.join(command[2:4])}: ") else lines[-1]
        raise Failed(f"{name} ended with {done.returncode}: {last}", done.returncode, said)
    return done.stdout
