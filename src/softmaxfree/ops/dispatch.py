"""Which implementation of an op runs, and why each other one does not. The only reader of environment variables."""

import os
from types import ModuleType

from torch import Tensor

from softmaxfree.ops.gaussian import naive

BACKEND_VARIABLE = "SOFTMAXFREE_BACKEND"
# first that can run wins; the definition runs everywhere
_GAUSSIAN: dict[str, ModuleType] = {"naive": naive}


def gaussian(x: Tensor, y: Tensor, b: Tensor) -> ModuleType:
    """Returns the module that computes the Gaussian kernel product of these tensors.

    Raises:
        ValueError: when the implementation forced by `SOFTMAXFREE_BACKEND` is unknown or cannot run; says why.
    """
    forced = os.environ.get(BACKEND_VARIABLE, "auto")
    if forced != "auto":
        if forced not in _GAUSSIAN:
            raise ValueError(f"{BACKEND_VARIABLE}={forced!r} is not one of auto, {', '.join(_GAUSSIAN)}")
        reasons = _GAUSSIAN[forced].not_supported_reasons(x, y, b)
        if reasons:
            raise ValueError(f"{BACKEND_VARIABLE}={forced!r} cannot run here: {'; '.join(reasons)}")
        return _GAUSSIAN[forced]
    return next(module for module in _GAUSSIAN.values() if not module.not_supported_reasons(x, y, b))


def explain_gaussian(x: Tensor, y: Tensor, b: Tensor) -> dict[str, list[str]]:
    """Returns for each implementation, in order of preference, the reasons why it cannot run (none: it can)."""
    return {name: module.not_supported_reasons(x, y, b) for name, module in _GAUSSIAN.items()}
