"""Weights of a model of ours as a safetensors file that names its model."""

import json
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor

from softmaxfree.atomic import atomic_write
from softmaxfree.models.released import RELEASED_SMALL_DEPTHS, depths_of, from_released, is_released

__all__ = ["arguments_for", "convert"]


def convert(weights: Mapping[str, Tensor], name: str, arguments: Mapping[str, Any], target: str | Path) -> Any:
    """Write weights as `softmaxfree convert` and `pretrained=True` keep them.

    Args:
        weights: a state dict, the authors' or ours.
        name: of its model.
        arguments: of its model, such as `arguments_for` returns.
        target: the `.safetensors` file to write. Its metadata hold `architecture` and, in JSON, `model_args`:
            the arguments of `timm.create_model` for these weights, solver included.

    Returns:
        The model with the weights.

    Raises:
        InputError: the weights are not those of the model: each must be there, of its shape, and none left over.
        OSError: the target cannot be written.
    """
    with torch.device("meta"):  # nothing to initialise
        net: Any = timm.create_model(name, **arguments)
    net.load_state_dict(weights, assign=True)
    metadata = {"format": "pt", "architecture": name, "model_args": json.dumps(net._model_args)}
    with atomic_write(target) as part:
        part.write_bytes(safetensors.torch.save(net.state_dict(), metadata))
    return net


def arguments_for(name: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that weights need, apart from their solver.

    Args:
        name: a model.
        weights: its state dict; under the authors' names too.

    Returns:
        `num_classes`, `in_chans` and `img_size` where the weights tell, `depths` for the authors' SOFT-Small.
    """
    ours = from_released(weights) if is_released(weights) else weights
    cfg: Any = timm.get_pretrained_cfg(name)
    arguments: dict[str, Any] = {}
    if (head := ours.get(f"{cfg.classifier}.weight")) is not None:
        arguments["num_classes"] = len(head)
    if (conv := ours.get(f"{cfg.first_conv}.weight")) is not None:
        arguments["in_chans"] = conv.shape[1]
    if (table := ours.get("stages.0.pos_embed.table")) is not None:
        arguments["img_size"] = 4 * isqrt(table.shape[1])  # a square table of stride 4
    if name in ("soft_small", "soft_norm_small") and depths_of(weights) == RELEASED_SMALL_DEPTHS:
        arguments["depths"] = RELEASED_SMALL_DEPTHS
    return arguments
