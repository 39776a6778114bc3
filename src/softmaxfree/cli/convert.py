"""`softmaxfree convert`: the authors' weights as a safetensors file that names its model."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from softmaxfree.cli.models import find_models
from softmaxfree.cli.outputs import require_free
from softmaxfree.errors import InputError
from softmaxfree.models.conversion import arguments_for, convert
from softmaxfree.models.released import require_fit
from softmaxfree.models.soft import checkpoint_filter_fn
from softmaxfree.weights import read_notes, read_weights

__all__ = ["run"]


def run(source: str, target: str, *, model: str | None = None) -> None:
    """Turn the authors' weights into a safetensors file.

    The file is read without running any code in it, and every weight must fit the model. The new file names its
    model, so `softmaxfree predict --checkpoint` needs nothing else. Its metadata hold `architecture` and, as JSON,
    `model_args`: the arguments of `timm.create_model` for these weights.

    Args:
        source: File with the weights of a SOFT model: one of the authors, such as SOFT_Tiny.pth, or one of ours.
        target: The `.safetensors` file to write.
        model: Name of the model. By default the shapes of the weights and the name of the file tell it.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read safely, is of another model, or its model cannot be told.
        OSError: the target cannot be written.

    Examples:
        softmaxfree convert SOFT_Tiny.pth soft_tiny.safetensors
        softmaxfree convert model_best.pth small.safetensors --model soft_norm_small
    """
    source, target = (os.path.expanduser(path) for path in (source, target))
    if Path(target).suffix != ".safetensors":
        raise InputError(f"TARGET must end in .safetensors, got {target}")
    weights = read_weights(source)
    require_free([target], [source], lambda path: "architecture" in read_notes(path), "TARGET")
    name, why = (find_models(model)[0], "as given") if model else _identify(weights, Path(source))
    try:
        net = convert(weights, name, arguments_for(name, weights), target)
    except ValueError as error:
        raise InputError(f"{source} as {name}: {error}") from error
    parameters = sum(parameter.numel() for parameter in net.parameters())
    print(f"model    {name}, {why}")
    print(f"weights  {parameters / 1e6:.2f} M parameters, all loaded, none left over")
    print(f"config   {json.dumps(net._model_args)}")
    print(f"written  {target}, {Path(target).stat().st_size / 1e6:.1f} MB")


def _identify(weights: Mapping[str, Tensor], source: Path) -> tuple[str, str]:
    """The model's name, and how it was found."""
    fitting = [name for name in timm.list_models(module="soft") if _fits(name, weights)]
    if not fitting:
        raise InputError(f"{source} fits no SOFT model; --model NAME tells what differs from that one")
    # Both families have the same shapes: only the name of the file tells them apart.
    words = set(re.findall("[a-z]+", source.stem.lower()))
    told = [name for name in fitting if "soft" in words and ("norm" in words) == ("norm" in name.split("_"))]
    if len(told) != 1:
        raise InputError(f"{source} fits {' and '.join(fitting)}, and its name does not tell which: give --model")
    return told[0], f"by its shapes, and among {' and '.join(fitting)} by the file's name"


def _fits(name: str, weights: Mapping[str, Tensor]) -> bool:
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, **arguments_for(name, weights))
        require_fit(checkpoint_filter_fn(weights, model), model)
    except ValueError:
        return False
    return True
