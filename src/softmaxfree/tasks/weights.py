"""Weights of classes in a loss."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from softmaxfree.errors import InputError

__all__ = ["balanced", "weights_of"]


def balanced(class_counts: Sequence[float]) -> list[float]:
    """Return class weights that raise rare classes: the inverse of the square root of the frequency.

    The whole inverse would give one image of a rare class the pull of many, and its noise. The mean weight of a sample
    is 1, so that the loss keeps its scale.

    Args:
        class_counts: images, or in segmentation pixels, of each class in the training data.

    Returns:
        A weight of each class. One that has no samples gets 1: there is nothing to weigh.

    Raises:
        InputError: there are no counts, none is above 0, or one is negative or not finite.
    """
    counts = [float(count) for count in class_counts]
    if not all(0 <= count < math.inf for count in counts) or not sum(counts):
        raise InputError(f"class_weights: balanced weights need a count of samples for each class, got {class_counts}")
    scale = sum(counts) / sum(math.sqrt(count) for count in counts)
    return [scale / math.sqrt(count) if count else 1.0 for count in counts]


def weights_of(given: Sequence[float] | None, num_classes: int) -> Tensor:
    """Return `(num_classes,)` weights, ones where none are given; raises InputError if they are wrong."""
    if given is None:
        return torch.ones(num_classes)
    weights = [float(weight) for weight in given]
    if len(weights) != num_classes:
        raise InputError(f"class_weights must have {num_classes} entries, one for each class, got {list(given)}")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise InputError(f"class_weights must be 0 or more, finite and not all 0, got {list(given)}")
    return torch.tensor(weights)
