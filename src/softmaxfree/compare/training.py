"""Accuracy after equal training: `softmaxfree train`, once for each variant and seed, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softmaxfree.compare.studies import Variant
from softmaxfree.errors import InputError
from softmaxfree_cli.recipes import read_recipe, recipe_of

__all__ = ["RECIPES", "train", "validate"]

_OF_MIXERS = ("last_stage", "landmark_sampling", "landmark_grid", "solver", "normalize", "mixer", "mixer_args")

RECIPES = {"digits": "digits", "solar_cells": "solar_cells", "scenes": "scenes_segmentation"}
"""Of embedded data; other data is a folder of images in folders of classes."""


def train(variant: Variant, data: str, seed: int, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Trains a network with the mixer in all stages, or goes on with a run that was interrupted.

    Args:
        variant: what to train.
        data: a key of `RECIPES`, or a folder of images.
        seed: of the run.
        folder: the runs of this variant and seed.
        options: further settings of the recipe.

    Returns:
        `metric`, its `score`, `best_epoch`, `seconds` of training and `parameters` of the network.

    Raises:
        InputError: the training fails; tells its last line.
    """
    run = folder / "0"
    if not (run / "summary.json").is_file():
        recipe = RECIPES.get(data, "classification")
        command = [sys.executable, "-m", "softmaxfree", "train", recipe]
        command += ["--out", str(folder), "--run.seed", str(seed)]
        command += ["--model.model_args", json.dumps(_model_args(variant, recipe))]
        if data not in RECIPES:
            command += ["--data.root", data]
        for key, value in options.items():
            command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        if (run / "last.ckpt").is_file():
            command += ["--resume", str(run)]
        _call(command)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    metric = summary["monitor"]
    return {
        "metric": metric,
        "score": summary["metrics"][metric],
        "best_epoch": summary["best_epoch"],
        "seconds": round(summary["seconds"], 1),
        "parameters": summary["model"]["parameters"],
    }


def validate(folder: Path, img_size: int) -> float:
    """Returns the score of a trained variant at another image size.

    Args:
        folder: as for `train`.
        img_size: side of the validation images, pixels.

    Returns:
        The score, in the unit of `train`.

    Raises:
        InputError: the validation fails; tells its last line.
    """
    run = folder / "0"
    out = _call([sys.executable, "-m", "softmaxfree", "validate", str(run), "--data.img_size", str(img_size)])
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    label, scale, _ = summary["labels"][summary["monitor"]]
    (line,) = (line for line in out.splitlines() if line.startswith(f"{label} "))
    return round(float(line.split()[-1]) / scale, 6)


def _model_args(variant: Variant, recipe: str) -> dict[str, Any]:
    """What a recipe says of the network, with this mixer in all stages in place of its own."""
    said = read_recipe(recipe_of(recipe))["model"].get("model_args") or {}
    kept = {key: value for key, value in said.items() if key not in _OF_MIXERS}
    return {**kept, "mixer": variant.mixer, "mixer_args": dict(variant.arguments)}


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        if done.returncode in (130, 143, -2, -15):
            raise KeyboardInterrupt
        lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no word"]
        raise InputError(f"{' '.join(command[2:5])} ended with {done.returncode}: {lines[-1]}")
    return done.stdout
