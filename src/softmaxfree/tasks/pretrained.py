"""Trained models as folders that timm, and so the model hub, can load."""

import json
import tempfile
from pathlib import Path
from typing import Any

import timm.models
from torch import nn

from softmaxfree.atomic import atomic_write

__all__ = ["save_pretrained"]

_OF_OTHER_WEIGHTS = ("tag", "origin_url", "license", "paper_ids", "paper_name", "notes")
"""What timm notes of the published weights of a model: these are others."""


def save_pretrained(
    model: nn.Module, folder: str | Path, data_config: dict[str, Any], class_names: tuple[str, ...]
) -> None:
    """Write `config.json` and `model.safetensors` for timm.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` reads them, where this package is imported.

    Args:
        model: a model made by `timm.create_model`.
        folder: where to write; files of these names are replaced.
        data_config: how an image is prepared: `input_size`, `mean`, `std`, `interpolation`, `crop_pct`.
        class_names: name of each class, or empty.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        timm.models.save_for_hf(
            model,
            scratch,
            model_config={"label_names": class_names} if class_names else None,
            safe_serialization=True,
            data_config=data_config,
        )
        config = json.loads(Path(scratch, "config.json").read_text())
        # transformers' TimmWrapper passes num_classes itself and fails on a second one.
        config.get("model_args", {}).pop("num_classes", None)
        for key in _OF_OTHER_WEIGHTS:
            config["pretrained_cfg"].pop(key, None)
        with atomic_write(folder / "model.safetensors") as part:
            part.write_bytes(Path(scratch, "model.safetensors").read_bytes())
        with atomic_write(folder / "config.json") as part:
            part.write_text(json.dumps(config, indent=2))
