"""Reads tests/golden/mil, and says how near to it everything must come."""

import json

import torch
from torch import Tensor, nn

from softmaxfree.mil import TransMIL
from tests.golden_files import below, load

# Euclidean distances over the norm of what is expected
MAX_ERROR = {torch.float64: 1e-12, torch.float32: 2e-6}
MAX_GRADIENT_ERROR = 1e-10
# of a bag in a padded batch against the bag alone, float32
MAX_BAG_EFFECT = 1e-5

BITS = {torch.float64: "64", torch.float32: "32"}


def tensors(name: str) -> dict[str, Tensor]:
    """Returns the tensors of `golden/mil/<name>.safetensors`."""
    return load(f"mil/{name}")[0]


def arguments(name: str) -> dict:
    """Returns the arguments that the metadata of a file has."""
    return json.loads(load(f"mil/{name}")[1]["arguments"])


def weights(name: str) -> dict[str, Tensor]:
    """Returns the weights of a file, under their own names."""
    return below(tensors(name), "weight.")


def transmil(dtype: torch.dtype = torch.float64, pad_mode: str = "official") -> TransMIL:
    """Returns TransMIL with the weights of `transmil.safetensors`."""
    return TransMIL.from_checkpoint(weights("transmil"), pad_mode=pad_mode).to(dtype)


def shaken(model: nn.Module) -> nn.Module:
    """Returns a network in evaluation mode of which no weight is 0, as some are at first."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def distance(out: Tensor, expected: Tensor) -> float:
    """Returns the Euclidean distance over the norm of what is expected, unless that is 0."""
    assert out.shape == expected.shape
    size = expected.double().norm().item() or 1.0
    return (out.double() - expected.double()).norm().item() / size
