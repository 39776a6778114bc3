"""The folder of a run without the training: what commands that take a run look at."""

from pathlib import Path

import torch

from softmaxfree.tasks import ClassificationTask

NAMES = ["ok", "crack|", "weiß"]
_ARGUMENTS = {
    "embed_dims": [8, 8, 16, 16],
    "num_heads": [1, 1, 2, 2],
    "depths": [1, 1, 1, 1],
    "mixer": "elu_linear",
}
_CONFIG = "task: softmaxfree.tasks.ClassificationTask\nmodel: {name: soft_nano, num_classes: 3}\n"


def write_run(folder: Path) -> Path:
    """Write a classifier of three classes with random weights, its settings and its metrics."""
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in _ARGUMENTS.items()}
    task = ClassificationTask("soft_nano", 3, model_args=arguments)
    notes = {
        "task": "ClassificationTask",
        "hyper_parameters": {"name": "soft_nano", "num_classes": 3, "model_args": _ARGUMENTS},
        "data_config": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0},
        "class_names": NAMES,
        "epoch": 0,
    }
    notes["data_config"]["interpolation"] = "bilinear"
    weights = {f"model.{key}": value for key, value in task.model.state_dict().items()}
    torch.save({"state_dict": weights, **notes}, folder / "best.ckpt")
    (folder / "config.yaml").write_text(f"{_CONFIG}data: {{root: cracks}}\ntrainer: {{max_epochs: 2}}\n")
    (folder / "metrics.csv").write_text("epoch,val/top1,seconds\n0,0.75,3.5\n1,0.5,3.5\n")
    return folder
