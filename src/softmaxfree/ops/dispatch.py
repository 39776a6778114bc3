"""Which implementation of an op runs, and why each other one does not.

The only reader of environment variables.
"""

import os
from types import ModuleType

from torch import Tensor

from softmaxfree.ops.gaussian import blocked, naive

BACKEND_VARIABLE = "SOFTMAXFREE_BACKEND"
# in order of preference: the first that can run does. The definition runs everywhere
_GAUSSIAN: dict[str, ModuleType] = {"blocked": blocked, "naive": naive}


def gaussian(x: Tensor, y: Tensor, b: Tensor) -> ModuleType:
    """Returns the module that computes the Gaussian kernel product of these tensors.

    Raises:
        ValueError: when the implementation forced by `SOFTMAXFREE_BACKEND` is unknown or cannot run; says
            why, and what the others say.
    """
    forced = os.environ.get(BACKEND_VARIABLE, "auto")
    if forced == "auto":
        return next(module for module in _GAUSSIAN.values() if not module.not_supported_reasons(x, y, b))
    if forced not in _GAUSSIAN:
        raise ValueError(f"{BACKEND_VARIABLE} must be one of auto, {', '.join(_GAUSSIAN)}; got {forced!r}")
    reasons = explain_gaussian(x, y, b)
    if reasons[forced]:
        answers = "; ".join(f"{name}: {', '.join(why) or 'can run'}" for name, why in reasons.items())
        raise ValueError(f"{BACKEND_VARIABLE}={forced} cannot run here ({answers})")
    return _GAUSSIAN[forced]


def explain_gaussian(x: Tensor, y: Tensor, b: Tensor) -> dict[str, list[str]]:
    """Returns, in order of preference, each implementation's reasons why it cannot run (none: it can)."""
    return {name: module.not_supported_reasons(x, y, b) for name, module in _GAUSSIAN.items()}
