"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation"]


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode, and afterwards each module into the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
