"""Reads the tensors computed with the released code (golden/README.md)."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors, on the default device, and the metadata of `golden/<name>.safetensors`."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        names = list(file.keys())
        return {key: file.get_tensor(key).to(torch.get_default_device()) for key in names}, file.metadata()


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def released_shapes() -> dict[str, dict[str, list[int]]]:
    """Returns every key and shape of the ten released variants."""
    return json.loads((FOLDER / "official_state_dict_shapes.json").read_text())


def released_weights(name: str) -> dict[str, Tensor]:
    """Returns random weights with the keys and shapes of a released variant; the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return {key: torch.rand(shape, generator=generator) * 0.05 for key, shape in released_shapes()[name].items()}


def release(path: Any, name: str, **change: Tensor) -> dict[str, Tensor]:
    """Writes what the authors' training script wrote for a model, to a path or a stream.

    Args:
        path: where to.
        name: of the model.
        **change: weights to be there in place of random ones.

    Returns:
        The weights that the script averaged, which count.
    """
    raw, ema = {"head.bias": torch.zeros(1000)}, released_weights(name) | change
    torch.save({"state_dict": raw, "state_dict_ema": ema, "args": argparse.Namespace(lr=1e-3), "epoch": 299}, path)
    return ema
