"""Photographs of solar cells, functional or defective, that come with a Python package."""

import functools
import random
from typing import ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from softmaxfree.arguments import require, require_whole
from softmaxfree.data.augmentation import create_eval_transform, create_train_transform
from softmaxfree.data.cracks import draw_cracks
from softmaxfree.data.images import AbstractImagesDataModule, ReadableImages, collate_readable
from softmaxfree.errors import InputError

__all__ = ["CITATION", "SolarCellsDataModule", "read_cells", "split_cells"]

CITATION = """\
Solar cells: the ELPV data set, licence CC-BY-NC-SA-4.0 (no commercial use). Who uses it cites:
  C. Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
  Imagery", EU PVSEC 2018; S. Deitsch et al., "Automatic classification of defective photovoltaic module cells in
  electroluminescence images", Solar Energy 185, 2019."""

_MEAN, _STD = 0.5965, 0.1611  # of the training images


class SolarCellsDataModule(AbstractImagesDataModule):
    """The 2,624 electroluminescence images (300 x 300, grey) of `elpv_dataset`: functional or defective cells.

    The package tells for each cell the probability of a defect, 0, 1/3, 2/3 or 1; above 1/2 it counts as defective.
    A quarter is held out, with as many of each probability and kind of cell (mono- or polycrystalline). The split is
    the same for every seed. Training images are cropped a little, and mirrored both ways; their bars stay horizontal.

    Args:
        batch_size: Number of images in a batch, of each process.
        img_size: Height and width of the images that the network gets, in pixels.
        num_workers: Number of processes that prepare images; 0 is the fastest on few cores, as images are in memory.
        scale: Smallest and largest part of the area of an image that a training crop covers, 0 to 1.
        ratio: Smallest and largest width of a training crop, divided by its height.
        color_jitter: Strength of the random change of brightness and contrast: one number, or a list of three, the
            third 0; 0 for none.
        soft_targets: Whether the probability of a defect is trained on rather than the class.
        cracks: Probability, 0 to 1, that cracks are drawn into a functional cell of the training, which then is trained
            on as defective; `class_counts` are those of the photographs.
        seed: Seed of the run.
    """

    num_classes = 2
    class_names = ("functional", "defective")
    preparation: ClassVar[tuple[str, ...]] = ("img_size",)

    def __init__(
        self,
        batch_size: int = 32,
        img_size: int = 112,
        num_workers: int = 0,
        scale: tuple[float, float] = (0.85, 1.0),
        ratio: tuple[float, float] = (0.9, 1.11),
        color_jitter: float | list[float] = 0.0,
        soft_targets: bool = False,
        cracks: float = 0.0,
        seed: int = 42,
    ) -> None:
        super().__init__(batch_size, num_workers, "fail", seed, None, collate_readable)
        require_whole("data.img_size", img_size, 1)
        require(type(cracks) in (int, float) and 0 <= cracks <= 1, "data.cracks", cracks, "from 0 to 1")
        self.soft_targets, self.cracks = soft_targets, cracks
        self.data_config = {
            "input_size": (1, img_size, img_size),
            "mean": (_MEAN,),
            "std": (_STD,),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        }
        augment = {
            "scale": scale, "ratio": ratio, "color_jitter": color_jitter, "interpolation": "bilinear",
            "hflip": 0.5, "vflip": 0.5, "auto_augment": None, "re_prob": 0,
        }  # fmt: skip
        self._transforms = {
            "train": create_train_transform(self.data_config, augment),
            "val": create_eval_transform(self.data_config),
        }
        self._counts: tuple[int, ...] = ()

    @property
    def found(self) -> str:
        """After `setup`: in one line what was found."""
        train, val = self.num_images.values()
        return f"{train + val} solar cells of 2 classes: {train} to train, {val} to validate, the same for every seed"

    @property
    def class_counts(self) -> tuple[int, ...]:
        """After `setup`: training images of each class."""
        return self._counts

    def setup(self, stage: str) -> None:
        """Read the images and split them; tell the licence.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            InputError: the package is not installed.
        """
        if self._sets:
            return
        images, probabilities, kinds = read_cells()
        rank_zero_only(print)(CITATION)
        labels = (probabilities > 0.5).long()
        for split, chosen in zip(("train", "val"), split_cells(probabilities, kinds), strict=True):
            soft = torch.stack([1 - probabilities, probabilities], dim=1)
            targets = soft if self.soft_targets and split == "train" else labels
            cracks = (labels[chosen] == 0) * (self.cracks if split == "train" else 0.0)
            cells = _Cells(images[chosen.numpy()], targets[chosen], cracks.tolist())
            self._sets[split] = ReadableImages(cells, self._transforms[split])
            if split == "train":
                self._counts = tuple(labels[chosen].bincount(minlength=2).tolist())


class _Cells(Dataset):
    def __init__(self, images: np.ndarray, targets: Tensor, cracks: list[float]) -> None:
        self.images, self.targets, self.cracks = images, targets, cracks
        self._defective = targets.new_tensor([0, 1] if targets.ndim == 2 else 1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        image = Image.fromarray(self.images[index])
        if random.random() < self.cracks[index]:
            return draw_cracks(image), self._defective
        return image, self.targets[index]


@functools.cache
def read_cells() -> tuple[np.ndarray, Tensor, np.ndarray]:
    """Read the package's images.

    Returns:
        Images (2624, 300, 300) uint8, the probability of a defect (2624,) float32, and "mono" or "poly" (2624,).

    Raises:
        InputError: the package is not installed.
    """
    try:
        from elpv_dataset.utils import load_dataset  # imported late: only this data set needs it
    except ModuleNotFoundError as error:
        raise InputError(
            f"the solar cells come with the package elpv-dataset: pip install 'softmaxfree[solar]' ({error})"
        ) from error
    images, probabilities, kinds = load_dataset()
    return images, torch.tensor(probabilities.tolist()), kinds


def split_cells(probabilities: Tensor, kinds: np.ndarray) -> tuple[Tensor, Tensor]:
    """Split the cells, the same way each time.

    Args:
        probabilities: of a defect (cells,).
        kinds: "mono" or "poly" (cells,).

    Returns:
        Indices of the training cells and of the held-out quarter, in order.
    """
    generator = torch.Generator().manual_seed(0)
    held = torch.zeros(len(probabilities), dtype=torch.bool)
    for kind in ("mono", "poly"):
        for probability in probabilities.unique():
            group = ((probabilities == probability) & torch.from_numpy(kinds == kind)).nonzero().flatten()
            held[group[torch.randperm(len(group), generator=generator)[: round(len(group) / 4)]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
