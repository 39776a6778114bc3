"""Images from files, of which some may be broken, and the data module around them."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from timm.data.dataset import ImageDataset
from torch.utils.data import DataLoader, Dataset, default_collate

from softmaxfree.data.loaders import eval_loader, train_loader
from softmaxfree.errors import InputError

__all__ = ["AbstractImagesDataModule", "AnnotationError", "ReadableImages", "collate_lists", "collate_readable"]


class AnnotationError(ValueError):
    """An annotation that contradicts its image or its data set. It stops the run; it is never left out."""


class ReadableImages(Dataset):
    """An indexed image dataset that marks what it cannot read and gives None for it.

    The marks are shared with the loader's workers, so that the training process can name and count the
    broken images.

    Args:
        dataset: gives an image and a label at each index, as timm's `ImageDataset` and torchvision's do. Its
            method `filename(index, absolute=True)`, if any, tells the image's name.
        transform: from an image to a tensor; of a dense task from an image and its label to the sample.
        dense: whether the transform is given the label too.
    """

    def __init__(self, dataset: Any, transform: Callable[..., Any], dense: bool = False) -> None:
        self.dataset = dataset
        self.transform = transform
        self.dense = dense
        self.unreadable = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any] | None:
        try:
            image, label = self._read(index)
        except AnnotationError:
            raise
        except Exception:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
            self.unreadable[index] = True
            return None
        return self.transform(image, label) if self.dense else (self.transform(image), label)

    def explain(self, index: int) -> str:
        """Return the name of an unreadable image and what is wrong with it."""
        filename = getattr(self.dataset, "filename", None)
        name = str(filename(index, absolute=True)) if filename else f"image {index}"
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


def collate_lists(samples: list) -> tuple[list, list]:
    """Make a batch of the dense samples that could be read: a list of images and one of targets, maybe empty."""
    samples = [sample for sample in samples if sample is not None]
    return [image for image, _ in samples], [target for _, target in samples]


class AbstractImagesDataModule(LightningDataModule):
    """Data whose `setup` fills `_sets` with a data set for each of the splits "train" and "val".

    Args:
        batch_size: images a process and step.
        num_workers: worker processes.
        on_error: what an unreadable image does: stop the run, or be left out, named and counted.
        seed: seed of the run.
        collate_fn: makes a batch of samples, of which those that could not be read are None.
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        on_error: Literal["skip", "fail"],
        seed: int,
        collate_fn: Callable[[list], Any],
    ) -> None:
        super().__init__()
        # those of the subclass too: they travel with the weights, which hold plain values only
        self.save_hyperparameters(ignore=["root", "collate_fn"], logger=False)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.on_error = on_error
        self.seed = seed
        self.collate_fn = collate_fn
        self._sets: dict[str, Dataset] = {}
        self._num_unreadable = 0

    preparation: ClassVar[tuple[str, ...]] = ()
    """Arguments that say how an evaluated image is prepared, which validation and prediction take from a checkpoint."""

    def train_dataloader(self) -> DataLoader:
        """Return the loader of the training split."""
        return train_loader(
            self._sets["train"],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            seed=self.seed,
            trainer=self.trainer,
            collate_fn=self.collate_fn,
        )

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the validation split."""
        return eval_loader(
            self._sets["val"],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            trainer=self.trainer,
            collate_fn=self.collate_fn,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Name the images that the loaders could not read since the last batch.

        Args:
            batch: the batch.
            dataloader_idx: not used.

        Returns:
            The batch. Of a dense task it may be empty in an evaluation.

        Raises:
            ValueError: there is an unreadable image and `on_error` is "fail", or a whole batch is unreadable.
        """
        sets = [s for s in self._sets.values() if isinstance(s, ReadableImages)]
        count = sum(int(s.unreadable.sum()) for s in sets)
        if count > self._num_unreadable:
            self._num_unreadable = count
            names = [s.explain(i) for s in sets for i in s.unreadable.nonzero().flatten().tolist()]
            if self.on_error == "fail":
                raise InputError(f"unreadable image {names[0]}; with --data.on_error skip such images are left out")
            warnings.warn(f"{count} unreadable images left out: {'; '.join(names)}", stacklevel=2)
        training = self.trainer is not None and self.trainer.training
        if batch is None or (training and len(batch[0]) == 0):
            raise InputError("a batch has no image that can be read")
        return batch
