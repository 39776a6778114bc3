"""Which implementation of an op runs, and why each other one does not.

The only reader of environment variables: `SOFTMAXFREE_GAUSSIAN` and `SOFTMAXFREE_NEWTON` force one.
"""

import os
from types import ModuleType

from torch import Tensor

from softmaxfree.errors import InputError

# of each op its modules by name, as `register` got them
IMPLEMENTATIONS: dict[str, dict[str, ModuleType]] = {}


def register(op: str, **modules: ModuleType) -> None:
    """Makes the implementations of an op known.

    Args:
        op: its name.
        **modules: in order of preference: the first that can run does, and the last can always. Each has a function
            `not_supported_reasons`, which gets the op's tensors.
    """
    IMPLEMENTATIONS[op] = modules


def choose(op: str, *tensors: Tensor) -> ModuleType:
    """Returns the module that computes `op` for these tensors.

    Args:
        op: `"gaussian"` (tensors `x, y, b`) or `"newton"` (tensor `p`).
        *tensors: what the op is called with.

    Returns:
        The first implementation that can run.

    Raises:
        InputError: when the implementation that the environment forces is unknown or cannot run; says why,
            and what the others say.
    """
    table = IMPLEMENTATIONS[op]
    forced = os.environ.get(variable(op), "auto")
    if forced == "auto":
        return next(module for module in table.values() if not module.not_supported_reasons(*tensors))
    if forced not in table:
        raise InputError(f"{variable(op)} must be one of auto, {', '.join(table)}; got {forced!r}")
    reasons = explain(op, *tensors)
    if reasons[forced]:
        answers = "; ".join(f"{name}: {', '.join(why) or 'can run'}" for name, why in reasons.items())
        raise InputError(f"{variable(op)}={forced} cannot run here ({answers})")
    return table[forced]


def explain(op: str, *tensors: Tensor) -> dict[str, list[str]]:
    """Returns each implementation's reasons why it cannot run (none: it can), in order of preference."""
    return {name: module.not_supported_reasons(*tensors) for name, module in IMPLEMENTATIONS[op].items()}


def variable(op: str) -> str:
    """Returns the environment variable that forces an implementation of `op`."""
    return f"SOFTMAXFREE_{op.upper()}"
