"""Images from files, of which some may be broken."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data.dataset import ImageDataset
from torch import Tensor
from torch.utils.data import Dataset, default_collate

__all__ = ["ReadableImages", "collate_readable"]


class ReadableImages(Dataset):
    """An indexed image dataset that marks what it cannot read and gives None for it.

    The marks are shared with the loader's workers, so that the training process can name and count the
    broken images.

    Args:
        dataset: gives an image and a label at each index, as timm's `ImageDataset` and torchvision's do.
        transform: from a PIL image to a tensor.
    """

    def __init__(self, dataset: Any, transform: Callable[[Image.Image], Tensor]) -> None:
        self.dataset = dataset
        self.transform = transform
        self.unreadable = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        try:
            image, label = self._read(index)
        except Exception:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
            self.unreadable[index] = True
            return None
        return self.transform(image), label

    def explain(self, index: int) -> str:
        """Return the name of an unreadable image and what is wrong with it."""
        name = f"image {index}"
        if isinstance(self.dataset, ImageDataset):
            name = str(self.dataset.filename(index, absolute=True))
        try:
            self._read(index)
        except Exception as error:
            return f"{name} ({error})"
        return name

    def _read(self, index: int) -> Any:
        if not isinstance(self.dataset, ImageDataset):
            return self.dataset[index]
        # Not `dataset[index]`, which shows the next image in the place of a broken one, and so twice.
        reader: Any = self.dataset.reader
        file, label = reader[index]
        with file:
            return Image.open(file).convert(self.dataset.input_img_mode), label


def collate_readable(samples: list) -> Any:
    """Make a batch of the samples that could be read; None if there is none."""
    samples = [sample for sample in samples if sample is not None]
    return default_collate(samples) if samples else None
