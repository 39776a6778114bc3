"""The three tests of Raff and Holt (Reproducibility in Multiple Instance Learning, NeurIPS 2023): bags of Gaussians.

A model that learns what the test asks for is right on test bags too; one that takes a short cut is wrong there.
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from softmaxfree.mil.data.bag import Bag

__all__ = ["TESTS", "RaffHoltBags"]

TESTS = ("single_concept", "multi_concept", "false_frequency")

_DIM = 16
_SHARP = 0.1  # standard deviation of concepts and of the poison
_POISON = -10.0
_BACKGROUND = 10  # instances of N(0, 1) of the first test; of the others 1 to 9
_Part = tuple[float, float, int, int]
"""Mean, standard deviation, how many instances, and their label."""


class RaffHoltBags(Dataset[Bag]):
    """Bags of 16 numbers an instance, as many positive as negative, in turn.

    - "single_concept" (algorithm 1): positive with 1 to 3 instances of N(0, 3) or N(1, 1) among N(0, 1). A poison,
      N(-10, 0.1), is in each negative training bag, and in each positive test bag: its absence tells nothing.
    - "multi_concept" (algorithm 2): positive where both N(2, 0.1) and N(3, 0.1) are there, negative with one of them;
      poison as above.
    - "false_frequency" (algorithm 3): positive where both N(-2, 0.1) and N(2, 0.1) are there, one of each; negative
      with one of the two: once in training bags, 35 to 39 times in test bags.

    Args:
        test: which.
        bags: how many.
        train: whether they are training bags; those that validate are too.
        seed: of the draw.
    """

    class_names = ("negative", "positive")
    in_dim = _DIM

    def __init__(self, test: str, bags: int, train: bool, seed: int) -> None:
        rng = np.random.default_rng([seed, int(train)])
        parts = {"single_concept": _single, "multi_concept": _multi, "false_frequency": _frequency}[test]
        self._bags = [_drawn(rng, parts(rng, positive=i % 2 == 0, train=train)) for i in range(bags)]

    def __len__(self) -> int:
        return len(self._bags)

    def filename(self, index: int, absolute: bool = False) -> str:
        """Return what reports call a bag."""
        return f"bag {index + 1}"

    def __getitem__(self, index: int) -> Bag:
        features, instances = self._bags[index]
        return Bag(features, torch.tensor(1 - index % 2), None, None, instances, len(features), index)


def _single(rng: np.random.Generator, positive: bool, train: bool) -> list[_Part]:
    parts = [(0.0, 1.0, _BACKGROUND, 0), *_poison(positive, train)]
    for wide in rng.integers(2, size=int(rng.integers(1, 4)) if positive else 0):
        parts.append((0.0, 3.0, 1, 1) if wide else (1.0, 1.0, 1, 1))
    return parts


def _multi(rng: np.random.Generator, positive: bool, train: bool) -> list[_Part]:
    parts = [(0.0, 1.0, int(rng.integers(1, 10)), 0), *_poison(positive, train)]
    if positive:
        each = int(rng.integers(1, 4))
        return [*parts, (2.0, _SHARP, each, 1), (3.0, _SHARP, each, 1)]
    return [*parts, (float(rng.choice([2.0, 3.0])), _SHARP, 1, 1)]


def _frequency(rng: np.random.Generator, positive: bool, train: bool) -> list[_Part]:
    parts = [(0.0, 1.0, int(rng.integers(1, 10)), 0)]
    if positive:
        return [*parts, (-2.0, _SHARP, 1, 1), (2.0, _SHARP, 1, 1)]
    count = 1 if train else int(rng.integers(35, 40))
    return [*parts, (float(rng.choice([-2.0, 2.0])), _SHARP, count, 1)]


def _poison(positive: bool, train: bool) -> list[_Part]:
    return [(_POISON, _SHARP, 1, 0)] if positive != train else []


def _drawn(rng: np.random.Generator, parts: list[_Part]) -> tuple[Tensor, Tensor]:
    features = np.concatenate([rng.normal(mean, deviation, (count, _DIM)) for mean, deviation, count, _ in parts])
    instances = np.concatenate([np.full(count, label) for *_, count, label in parts])
    order = rng.permutation(len(features))
    return torch.from_numpy(features[order]).float(), torch.from_numpy(instances[order])
