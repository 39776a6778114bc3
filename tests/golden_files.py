"""Reads the tensors computed with the released code (golden/README.md)."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of `golden/<name>.safetensors`."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        names = list(file.keys())
        return {key: file.get_tensor(key) for key in names}, file.metadata()


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def released_shapes() -> dict[str, dict[str, list[int]]]:
    """Returns every key and shape of the ten released variants."""
    return json.loads((FOLDER / "official_state_dict_shapes.json").read_text())
