"""Networks of bags by name."""

import inspect
from typing import Any

from torch import nn

from softmaxfree.arguments import require_known
from softmaxfree.errors import InputError
from softmaxfree.mil.encoder import BagEncoder
from softmaxfree.mil.pooling import GatedAttention, InstanceMax, MaxPooling, MeanPooling
from softmaxfree.mil.transmil import TransMIL

__all__ = ["bag_model_arguments", "create_bag_model", "list_bag_models", "require_bag_model"]

_MODELS: dict[str, type[nn.Module]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "instance_max": InstanceMax,
    "gated_attention": GatedAttention,
    "transmil": TransMIL,
    "bag_encoder": BagEncoder,
}

_ALSO_CALLED = {
    "abmil": "gated_attention",
    "attention_mil": "gated_attention",
    "attention": "gated_attention",
    "meanmil": "mean",
    "maxmil": "max",
}
"""Names of other libraries."""


def list_bag_models() -> list[str]:
    """Returns the names of all networks of bags."""
    return list(_MODELS)


def require_bag_model(option: str, name: str) -> None:
    """Raises InputError, with the nearest names, unless there is such a network.

    Args:
        option: in which it was given.
        name: see `list_bag_models`.
    """
    if name not in _MODELS and (here := _ALSO_CALLED.get(name.lower())):
        raise InputError(f"{option}: there is no {name!r}; it is called {here} here")
    require_known(option, name, _MODELS)


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
    require_bag_model("bag model", name)
    known = bag_model_arguments(name)
    for key in own:
        if key not in known:
            raise InputError(f"the network {name} has no argument {key!r}; it has {', '.join(known)}")
    return _MODELS[name](num_classes=num_classes, in_dim=in_dim, **own)
