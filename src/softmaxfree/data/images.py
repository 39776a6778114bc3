"""Images from files, of which some may be broken, and the data module around them."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.dataset import ImageDataset
from torch.utils.data import DataLoader, Dataset, default_collate

from softmaxfree.arguments import require_whole
from softmaxfree.data.class_folders import Listing
from softmaxfree.data.loaders import eval_loader, train_loader
from softmaxfree.data.places import PLACES
from softmaxfree.errors import InputError
from softmaxfree.images import read_image, resized_shape, stored_shape, tell_left_out
from softmaxfree.printing import few

__all__ = [
    "DENSE_PREPARATION",
    "MIN_SIDE",
    "AbstractImagesDataModule",
    "AnnotationError",
    "ReadableImages",
    "check_side",
    "collate_lists",
    "collate_readable",
    "frame_hint",
    "warn_left_out",
]

MIN_SIDE = 32
"""Least height and width, in pixels, of an image that a detector or a segmenter is given."""

_UNREADABLE, _CONTRADICTED = 1, 2
_NAMED = 10  # images in one warning
DENSE_PREPARATION: dict[str, Any] = {
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}
"""What all dense tasks do alike to an image, in timm's words."""


class AnnotationError(InputError):
    """An annotation that contradicts its image or its data set. It stops the run; it is never left out."""


class ReadableImages(Dataset):
    """An indexed image dataset that marks what it cannot make a sample of and gives None for it.

    The marks are shared with the loader's workers, so that the training process can name and count the images.

    Args:
        dataset: gives an image and a label at each index, as timm's `ImageDataset` and torchvision's do. Its
            method `filename(index, absolute=True)`, if any, tells the image's name.
        transform: from an image to a tensor; of a dense task from an image and its label to the sample.
        dense: whether the transform is given the label too.
        max_pixels: height times width from which an image of timm's `ImageDataset` is refused.

    Attributes:
        marks: (images,) uint8: 0, or what was wrong with the image.
    """

    def __init__(
        self, dataset: Any, transform: Callable[..., Any], dense: bool = False, max_pixels: int | None = None
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.dense = dense
        self.max_pixels = max_pixels
        self.marks = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any] | None:
        try:
            return self._prepare(index)
        except AnnotationError:  # a worker could not hand it on in one line
            self.marks[index] = _CONTRADICTED
        except Exception:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
            self.marks[index] = _UNREADABLE
        return None

    def unreadable(self) -> list[int]:
        """Return the indices of the images that were left out.

        Returns:
            The indices.

        Raises:
            AnnotationError: an annotation contradicts its image.
        """
        if not self.marks.any():
            return []
        for index in (self.marks == _CONTRADICTED).nonzero().flatten().tolist():
            raise AnnotationError(self.explain(index))
        return self.marks.nonzero().flatten().tolist()

    def explain(self, index: int) -> str:
        """Return the name of an image that was left out and what is wrong with it."""
        filename = getattr(self.dataset, "filename", None)
        name = str((filename and filename(index, absolute=True)) or f"image {index}")
        try:
            self._prepare(index)
        except Exception as error:
            text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            text = " ".join(text.split())  # one line
            return text if name in text else f"{name}: {text}"
        return f"{name}: its augmentation failed by chance"

    def _prepare(self, index: int) -> tuple[Any, Any]:
        image, label = self._read(index)
        return self.transform(image, label) if self.dense else (self.transform(image), label)

    def _read(self, index: int) -> Any:
        if not isinstance(self.dataset, ImageDataset):
            return self.dataset[index]
        # Not `dataset[index]`, which shows the next image in the place of a broken one, and so twice.
        reader: Any = self.dataset.reader
        file, label = reader[index]
        mode: Any = self.dataset.input_img_mode
        with file:
            return read_image(file, mode, self.max_pixels), label


def check_side(name: str, height: int, width: int, size: tuple[int, int] | None, arguments: str) -> None:
    """Refuse an image that is too small for the networks of dense tasks.

    Args:
        name: of its file.
        height: of the image.
        width: of the image.
        size: least shorter side and most of the longer to which it is resized; None leaves it as it is.
        arguments: that decide the size, for the message.

    Raises:
        InputError: a side is below `MIN_SIDE`.
    """
    resized = resized_shape(height, width, size) if size else (height, width)
    if min(resized) < MIN_SIDE:
        after = f", and {resized[0]} and {resized[1]} when resized" if size else ""
        remedy = f"; {arguments} say to what it is resized" if size else ""
        raise InputError(
            f"{name} is {height} high and {width} wide{after}; the networks need {MIN_SIDE} pixels or more each way"
            + remedy
        )


def frame_hint(name: str, shape: tuple[int, ...]) -> str:
    """Return what to add where annotations of this height and width fit the stored image, which EXIF turns."""
    if stored_shape(name) != shape:
        return ""
    return (
        "; that is the image as stored, which its EXIF orientation turns: annotate it as it is shown, or remove the "
        "orientation from the file"
    )


def warn_left_out(where: Any, left_out: Counter[str]) -> None:
    """Say once, in one line, which files of a folder or tar file are no images of the data."""
    if left_out:
        rank_zero_warn(f"{where}: {tell_left_out(left_out)}")


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
        batch_size: Number of images in a batch, of each process. "auto" is decided in `setup`.
        num_workers: Number of processes that prepare images; 0 prepares them in the process of the training. "auto" is
            decided in `setup`.
        on_error: What happens at an unreadable image: "skip" leaves it out, names and counts it; "fail" stops the run.
        seed: Seed of the run.
        max_pixels: Number of pixels (height times width) above which an image counts as unreadable; None for no limit.
        collate_fn: Makes a batch of samples, of which those that could not be read are None.
    """

    def __init__(
        self,
        batch_size: int | Literal["auto"],
        num_workers: int | Literal["auto"],
        on_error: Literal["skip", "fail"],
        seed: int,
        max_pixels: int | None,
        collate_fn: Callable[[list], Any],
    ) -> None:
        super().__init__()
        # those of the subclass too: they travel with the weights, which hold plain values only
        self.save_hyperparameters(ignore=[*PLACES, "collate_fn"], logger=False)
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value != "auto":  # which `setup` decides
                require_whole(f"data.{name}", value, least)
        if max_pixels is not None and max_pixels < 1:
            raise InputError(f"data.max_pixels must be 1 or more, or null for no limit, got {max_pixels}")
        self.batch_size: Any = batch_size  # a number after `setup`
        self.num_workers: Any = num_workers
        self.on_error = on_error
        self.seed = seed
        self.max_pixels = max_pixels
        self.collate_fn = collate_fn
        self._sets: dict[str, Dataset] = {}
        self._unreadable_told: dict[str, set[int]] = {}  # unreadable images, by split
        self.decided: dict[str, tuple[Any, str]] = {}
        """After `setup`: arguments that were "auto", each with its value and why."""
        self.known_classes: tuple[str, ...] = ()
        """To be set before `setup`: classes that weights know. Data of some of these are numbered as they are."""
        self.processes = 1
        """To be set before `setup`: processes that train on this machine, which share its cores and memory."""
        self.split_rows: list[tuple[str, str]] = []
        """After `setup`: file, relative to the root, and split, where the images were split here; else empty."""
        self.remarks: list[str] = []
        """After `setup`: what somebody who reads the scores should know of the data, a sentence each."""
        self.also_trained_on = 0
        """After `setup`: validation images that are training images too, as far as that was looked for."""

    preparation: ClassVar[tuple[str, ...]] = ()
    """Arguments that say how an evaluated image is prepared, which validation and prediction take from a checkpoint."""

    @property
    def found(self) -> str:
        """After `setup`: in one line what was found: images, classes and their counts, splits."""
        return ", ".join(f"{len(images)} images in {split}" for split, images in self._sets.items())  # type: ignore[arg-type]

    @property
    def num_images(self) -> dict[str, int]:
        """After `setup`: number of images of each split that was set up."""
        return {split: len(images) for split, images in self._sets.items()}  # type: ignore[arg-type]

    def listing(self, split: str) -> Listing | None:
        """Return the files of a split that was set up; None where it is not of files."""
        return getattr(getattr(self._sets.get(split), "dataset", None), "listing", None)

    def labels_digest(self, split: str) -> str:
        """Return a digest of the labels of a split that was set up, whatever their kind; "" where there is none."""
        images: Any = getattr(self._sets.get(split), "dataset", None)
        if not hasattr(images, "label_bytes"):
            return ""
        digest = hashlib.sha256()
        for index in range(len(images)):
            digest.update(images.label_bytes(index) + b"\n")
        return digest.hexdigest()[:32]

    @property
    def class_counts(self) -> tuple[int, ...]:
        """After `setup`: images (of masks: pixels) of each class in the training split; empty where unknown."""
        return ()

    @property
    def left_out_images(self) -> dict[str, list[str]]:
        """Images of each split that this process could not read so far: each with its name and what is wrong."""
        sets = {split: images for split, images in self._sets.items() if isinstance(images, ReadableImages)}
        return {split: list(map(images.explain, images.unreadable())) for split, images in sets.items()}

    def decide(self, argument: str, value: Any, why: str) -> None:
        """Replace an argument that was "auto", also in what is saved with the weights.

        Args:
            argument: its name, which is that of an attribute.
            value: what it is from now on.
            why: in few words.
        """
        setattr(self, argument, value)
        self.hparams[argument] = value
        self.decided[argument] = value, why

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
            The batch. If nothing in it could be read it is None, or of a dense task empty lists.

        Raises:
            InputError: an annotation contradicts its image, there is an unreadable image and `on_error` is "fail", or
                a whole batch of one of several processes is unreadable.
        """
        for split, images in self._sets.items():
            if isinstance(images, ReadableImages):
                self._tell(split, images)
        shared = self.trainer is not None and self.trainer.training and self.trainer.world_size > 1
        if shared and (batch is None or len(batch[0]) == 0):
            raise InputError("a batch has no image that can be read, and the other processes wait for its gradient")
        return batch

    def _tell(self, split: str, images: ReadableImages) -> None:
        unreadable, told = images.unreadable(), self._unreadable_told.setdefault(split, set())
        new = [index for index in unreadable if index not in told]
        if not new:
            return
        if self.on_error == "fail":
            raise InputError(
                f"unreadable image: {images.explain(new[0])}; with --data.on_error skip such images are left out"
            )
        if len(unreadable) == len(images):
            raise InputError(f"none of the {len(images)} images can be read; the first: {images.explain(new[0])}")
        names = few([images.explain(index) for index in new], _NAMED, "; ")
        many = "image" if len(unreadable) == 1 else "images"
        warnings.warn(f"{len(unreadable)} unreadable {many} left out: {names}", stacklevel=3)
        told.update(new)
