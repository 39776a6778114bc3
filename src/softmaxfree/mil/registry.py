"""Networks of bags by name."""

import inspect
from typing import Any

from torch import nn

from softmaxfree.arguments import require_known
from softmaxfree.errors import InputError
from softmaxfree.mil.encoder import BagEncoder
from softmaxfree.mil.pooling import GatedAttention, InstanceMax, MaxPooling, MeanPooling
from softmaxfree.mil.transmil import TransMIL

__all__ = ["bag_model_arguments", "create_bag_model", "list_bag_models"]

_MODELS: dict[str, type[nn.Module]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "instance_max": InstanceMax,
    "gated_attention": GatedAttention,
    "transmil": TransMIL,
    "bag_encoder": BagEncoder,
}


def list_bag_models() -> list[str]:
    """Returns the names of all networks of bags."""
    return list(_MODELS)


def bag_model_arguments(name: str) -> list[str]:
    """Returns the names of a network's own arguments: all but `num_classes` and `in_dim`.

    Args:
        name: see `list_bag_models`.

    Returns:
        The names.
    """
    return [key for key in inspect.signature(_MODELS[name]).parameters if key not in ("num_classes", "in_dim")]


def create_bag_model(name: str, *, num_classes: int, in_dim: int, **own: Any) -> nn.Module:
    """Makes a network of bags.

    Args:
        name: see `list_bag_models`.
        num_classes: outputs.
        in_dim: width of the features of a patch.
        **own: arguments of this network.

    Returns:
        The network: `forward(x, mask=None, coords=None)` maps features `(B, N, in_dim)` to logits `(B, num_classes)`.

    Raises:
        InputError: there is no such network or argument, or an argument is out of range.
    """
    require_known("bag model", name, _MODELS)
    known = bag_model_arguments(name)
    for key in own:
        if key not in known:
            raise InputError(f"the network {name} has no argument {key!r}; it has {', '.join(known)}")
    return _MODELS[name](num_classes=num_classes, in_dim=in_dim, **own)
