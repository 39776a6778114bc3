"""`softmaxfree models`: parameters, MACs and size of every model."""

import difflib
from collections.abc import Sequence
from math import floor, log10
from typing import Any

import timm
import torch
from tqdm import tqdm

from softmaxfree.bench.macs import macs
from softmaxfree.cli.table import markdown_table, print_table
from softmaxfree.errors import InputError

__all__ = ["find_models", "run"]

_COLUMNS = ("model", "image", "params (M)", "size (MB)", "GMACs conv+linear", "GMACs executed", "GMACs published")


def run(pattern: str = "*", *, markdown: bool = False, img_size: Sequence[int] | None = None) -> None:
    """List the models: parameters, MACs, size.

    GMACs are billions of multiply-adds for one image. "conv+linear" counts convolutions and linear layers alone;
    "executed" every product that this library computes, the inverse included; "published" the released formulation
    as papers count it: its order of products, without the inverse.

    Args:
        pattern: Names of models, with wildcards, such as 'soft_norm_*'.
        markdown: Print a Markdown table.
        img_size: Heights and widths in pixels, a row each. By default each model's own.

    Raises:
        InputError: no model matches, or an image is smaller than a model's minimum.

    Examples:
        softmaxfree models
        softmaxfree models 'soft_norm_*' --img-size 224 512 1024 --markdown
    """
    names = tqdm(find_models(pattern), unit="model", disable=None, leave=False)
    rows = [row for name in names for row in _rows(name, img_size)]
    rows.sort(key=lambda row: (row[0].rpartition("_")[0], float(row[2])))  # by family and parameters
    if markdown:
        print(markdown_table(_COLUMNS, rows))
    else:
        print_table(_COLUMNS, rows)


def find_models(pattern: str = "*") -> list[str]:
    """Return the names of this package's models that match a pattern.

    Args:
        pattern: a name, with wildcards.

    Returns:
        At least one name.

    Raises:
        InputError: no model matches; names the nearest ones.
    """
    modules = {name: timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    # `linearized` is what a network of timm becomes
    ours = [n for n, module in modules.items() if module.startswith("softmaxfree.") and n != "linearized"]
    found = [name for name in timm.list_models(pattern) if name in ours]
    if not found:
        near = difflib.get_close_matches(pattern.strip("*"), ours) or ours
        raise InputError(f"no model matches {pattern!r}; there are {', '.join(near)}")
    return found


def _rows(name: str, img_size: Sequence[int] | None) -> list[tuple[str, ...]]:
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    params = sum(parameter.numel() for parameter in model.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    rows = []
    for side in img_size or [model.pretrained_cfg["input_size"][-1]]:
        if side < (smallest := getattr(model, "min_img_size", 1)):
            raise InputError(f"--img-size must be {smallest} or more for {name}, got {side}")
        counts = [_three_digits(count / 1e9) for count in macs(model, (side, side)).values()]
        rows.append((name, f"{side}x{side}", f"{params / 1e6:.2f}", f"{size / 1e6:.1f}", *counts))
    return rows


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - floor(log10(value)))}f}"
