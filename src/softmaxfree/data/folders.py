"""Labelled images in folders (ImageNet's layout), in tar files, in a table, or from any source that timm can name."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset, IterableDataset

from softmaxfree.data import automatic, sources
from softmaxfree.data.augmentation import create_eval_transform, create_train_transform
from softmaxfree.data.class_folders import LabelledImages
from softmaxfree.data.images import AbstractImagesDataModule, ReadableImages, collate_readable
from softmaxfree.data.labelled import find_splits
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS, check_resized, convert_image, upright

__all__ = ["ImageFolderDataModule"]


class ImageFolderDataModule(AbstractImagesDataModule):
    """Images by class, augmented as timm does.

    Without a `source` the images are one of these:

    - `root` with the folders `train` and `val` (or `valid`, `validation`, `dev`, or `test` where there is no other; in
      any case), each with a folder of images a class; or `train.tar` and `val.tar` with such folders inside.
    - `root` with a folder a class. A part of each class is held out, drawn by `seed`: a fifth of up to 2,500 images, a
      tenth from 5,000 on, between them in proportion; one image at least on each side.
    - a table, `train_csv`: a CSV file with the columns `image` and `label`, and `split` if wanted. Its paths begin at
      `root`. Without a split of its own and without `val_csv`, images are drawn as above.

    A class may have folders inside: its images are those at any depth. Classes are numbered in natural order.

    Args:
        root: Folder with a folder of images for each class, or a table of images and labels; with `train_csv` the
            folder where its paths begin, and null for the folder of the table itself. With `source` what timm makes of
            it, mostly a cache.
        train_csv: CSV file of the training images, or of all, with the columns `image` and `label`, and `split` if
            wanted.
        val_csv: CSV file of the validation images; null takes them from `train_csv`.
        split: CSV file that says which images train and which validate, with the columns `file` (below the root) and
            `split` (train or val). Null draws the split by the seed, where the data have none.
        source: Name of a data set that `timm.data.create_dataset` opens, such as `torch/...`, `hfds/...` or `wds/...`;
            empty for images in files.
        source_args: Further arguments of `create_dataset`, such as `input_key` and `target_key`; for images in files
            only `class_map`. Null for none.
        train_split: Name of the training split in the source; not used for images in files.
        val_split: Name of the validation split in the source; not used for images in files.
        img_size: Height and width of the images that the network gets, in pixels. "auto" is the median of the shorter
            sides of the images, as a multiple of 32, from 64 to 224.
        in_chans: Number of channels of the images that the network gets: 3 for colour, 1 for grey. The network's own
            `model.model_args.in_chans` must be the same.
        batch_size: Number of images in a batch, of each process. "auto" is a power of two from 8 to 64 that gives an
            epoch eight steps or more. What is "auto" of batch and image size becomes smaller if a step would fill half
            of the memory, at 3 kB for each pixel.
        num_workers: Number of processes that prepare images; 0 prepares them in the process of the training. "auto" is
            0 if all images decode in about a second, else one for each CPU core, 8 at most.
        mean: Mean of each channel, of values from 0 to 1, which is subtracted; by default those of ImageNet, of grey
            images the mean of the three.
        std: Standard deviation of each channel, of values from 0 to 1, by which values are divided; by default as for
            `mean`.
        scale: Smallest and largest part of the area of an image that a training crop covers, 0 to 1.
        ratio: Smallest and largest width of a training crop, divided by its height.
        hflip: Probability that a training image is mirrored, 0 to 1.
        orientation: "any" also mirrors training images vertically and turns them by quarters, for images without an up,
            such as those from above or through a microscope; "upright" does not.
        color_jitter: Strength of the random change of colours in training: one number, or those of brightness,
            contrast, saturation and, if wanted, hue; 0 for none. Not used where `auto_augment` is.
        auto_augment: Name of an automatic augmentation of timm, such as `rand-m9-mstd0.5-inc1`; null for none.
        train_interpolation: How training images are resized: bilinear, bicubic or another filter of Pillow, or random.
        re_prob: Probability that a rectangle of a training image is erased, 0 to 1.
        re_mode: What an erased rectangle is filled with: `const` is the mean colour, `rand` one random colour, `pixel`
            random pixels.
        interpolation: How validation images are resized: bilinear, bicubic or another filter of Pillow.
        crop_pct: Part of the side of a resized validation image that the crop of its centre keeps, up to 1.
        on_error: What happens at an unreadable image: "skip" leaves it out, names and counts it; "fail" stops the run.
            A streamed source has its own way.
        seed: Seed of the run.
        max_pixels: Number of pixels (height times width) above which an image counts as unreadable; null for no limit.
    """

    preparation: ClassVar[tuple[str, ...]] = ("img_size", "in_chans", "mean", "std", "interpolation", "crop_pct")

    def __init__(
        self,
        root: str | None = None,
        train_csv: str | None = None,
        val_csv: str | None = None,
        split: str | None = None,
        source: str = "",
        source_args: dict[str, Any] | None = None,
        train_split: str = "train",
        val_split: str = "validation",
        img_size: int | Literal["auto"] = 224,
        in_chans: Literal[1, 3] = 3,
        batch_size: int | Literal["auto"] = 128,
        num_workers: int | Literal["auto"] = 8,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        orientation: Literal["upright", "any"] = "upright",
        color_jitter: float | list[float] = 0.4,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        train_interpolation: str = "random",
        re_prob: float = 0.25,
        re_mode: Literal["const", "rand", "pixel"] = "pixel",
        interpolation: str = "bicubic",
        crop_pct: float = 0.875,
        on_error: Literal["skip", "fail"] = "fail",
        seed: int = 42,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__(batch_size, num_workers, on_error, seed, max_pixels, collate_readable)
        if in_chans == 1 and (tuple(mean), tuple(std)) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
            mean, std = ((sum(of_colours) / 3,) for of_colours in (mean, std))
        if not len(mean) == len(std) == in_chans:
            raise InputError(f"data.mean and data.std need data.in_chans = {in_chans} values, got {mean} and {std}")
        if root is None and not train_csv and not source:
            raise InputError("data.root is missing: a folder with a folder a class; or data.train_csv, a table")
        self.root, self.train_csv, self.val_csv, self.split = root, train_csv, val_csv, split
        self.source = source
        self.source_args = source_args or {}
        self.img_size = img_size
        self.data_config: dict[str, Any] = {
            "mean": tuple(mean),
            "std": tuple(std),
            "interpolation": interpolation,
            "crop_pct": crop_pct,
        }
        self.class_names: tuple[str, ...] = ()
        self._splits = {"train": train_split, "val": val_split}
        self._augment: dict[str, Any] = {
            "scale": scale,
            "ratio": ratio,
            "hflip": hflip,
            "orientation": orientation,
            "color_jitter": color_jitter,
            "auto_augment": auto_augment,
            "interpolation": train_interpolation,
            "re_prob": re_prob,
            "re_mode": re_mode,
        }
        self._mode: Literal["RGB", "L"] = "RGB" if in_chans == 3 else "L"
        self._found, self._counts = "", tuple[int, ...]()
        self._set_size(224 if img_size == "auto" else img_size)
        self._transform("train"), self._transform("val")  # which name a wrong argument now

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None where the source does not tell."""
        return len(self.class_names) or None

    @property
    def found(self) -> str:
        """After `setup`: in one line what was found: images, classes and their counts, splits."""
        return self._found

    @property
    def num_images(self) -> dict[str, int]:
        """After `setup`: number of images of each split whose source tells it."""
        return {split: len(images) for split, images in self._sets.items() if hasattr(images, "__len__")}

    @property
    def class_counts(self) -> tuple[int, ...]:
        """After `setup`: training images of each class, but those that could not be read so far; empty if unknown."""
        images = self._sets.get("train")
        counts = list(self._counts)
        if counts and isinstance(images, ReadableImages) and isinstance(images.dataset, LabelledImages):
            for index in images.unreadable():
                counts[images.dataset.targets[index]] -= 1
        return tuple(counts)

    def setup(self, stage: str) -> None:
        """Find the images, and decide what is "auto".

        Args:
            stage: what the Trainer is about to do.

        Raises:
            FileNotFoundError: there is no such folder or table.
            InputError: a split is missing or has no images, a class has no training images, or a table is wrong.
        """
        if self._sets:
            return
        datasets = self._of_source() if self.source else self._of_files()
        self._decide(datasets["train"])
        self._sets = {split: self._prepare(split, dataset) for split, dataset in datasets.items()}

    def _of_files(self) -> dict[str, Dataset]:
        if unknown := self.source_args.keys() - {"class_map"}:
            raise InputError(f"data.source_args without a data.source may be class_map, got {', '.join(unknown)}")
        splits = find_splits(
            self.root,
            self.train_csv,
            self.val_csv,
            self.split,
            self.seed,
            self.source_args.get("class_map"),
            self.known_classes,
        )
        self.class_names = tuple(splits.class_to_idx)
        self.split_rows = splits.rows
        datasets: dict[str, Dataset] = {
            split: LabelledImages(listing, splits.class_to_idx, self._mode, self.max_pixels)
            for split, listing in splits.listings.items()
        }
        self._counts, self._found = splits.class_counts, splits.found
        self.remarks, self.also_trained_on = list(splits.remarks), splits.shared
        return datasets

    def _of_source(self) -> dict[str, Any]:
        if given := [name for name in ("train_csv", "val_csv", "split") if getattr(self, name)]:
            raise InputError(f"data.{given[0]} is not for a data.source, which has splits of its own")
        datasets = sources.open_splits(
            self.source, self.root, self._splits, self.seed, self._mode, self.max_pixels, self.source_args
        )
        self.class_names = sources.class_names(datasets["train"])
        self._counts, self._found = sources.class_counts(datasets["train"]), sources.tell(self.source, datasets)
        return datasets

    def _decide(self, train: Any) -> None:
        auto = [name for name in ("img_size", "batch_size", "num_workers") if getattr(self, name) == "auto"]
        if not auto:
            return
        streamed = isinstance(train, IterableDataset)
        shapes = [] if streamed else automatic.sample_shapes(train)
        count = len(train) if hasattr(train, "__len__") else 0
        pixels = count * statistics.mean(height * width for height, width in shapes) if shapes else math.inf
        wanted = {
            "img_size": automatic.image_size([min(shape) for shape in shapes]) if shapes else 224,
            "batch_size": automatic.batch_size(count) if count else 32,
            "num_workers": 0 if streamed else automatic.num_workers(pixels, self.processes),
        }
        why = {
            "img_size": f"median shorter side {statistics.median(map(min, shapes)):g}" if shapes else "sizes unknown",
            "batch_size": f"{count} training images" if count else "number of images unknown",
            "num_workers": "CPU cores" if wanted["num_workers"] else "all images decode in a second",
        }
        if streamed:
            why["num_workers"] = "streamed"
        given = {name: wanted[name] if name in auto else getattr(self, name) for name in wanted}
        memory, kind = automatic.total_memory(self.processes)
        batch, side = automatic.fitting(
            given["batch_size"], given["img_size"], memory,
            change_batch="batch_size" in auto, change_side="img_size" in auto,
        )  # fmt: skip
        for name, fits in (("batch_size", batch), ("img_size", side)):
            if fits < given[name]:
                why[name] += f", and {memory / 2**30:.1f} GiB of {kind}"
                given[name] = fits
        for name in auto:
            self.decide(name, given[name], why[name])
        self._set_size(side)

    def _set_size(self, side: int) -> None:
        self.data_config["input_size"] = (1 if self._mode == "L" else 3, side, side)

    def _transform(self, split: str) -> Any:
        if split == "train":
            return create_train_transform(self.data_config, self._augment)
        return create_eval_transform(self.data_config)

    def _prepare(self, split: str, dataset: Any) -> Dataset:
        short = None if split == "train" else int(self.data_config["input_size"][-1] / self.data_config["crop_pct"])
        transform = _Converted(self._mode, self._transform(split), short)
        if not isinstance(dataset, IterableDataset):
            return ReadableImages(dataset, transform, max_pixels=self.max_pixels)
        stream: Any = dataset
        stream.transform = transform
        reader: Any = getattr(stream, "reader", None)
        if hasattr(reader, "batch_size"):  # a worker gives whole batches
            reader.batch_size = self.batch_size
        shards = len(getattr(getattr(reader, "split_info", None), "filenames", None) or ())
        if split == "train" and 0 < shards < self.num_workers:
            raise InputError(
                f"data.num_workers is {self.num_workers}, but there are {shards} shards to train on: a worker needs one"
            )
        return stream


class _Converted:
    """A transform of what a source gives, in whatever mode it gives it; `short` is the side to which it resizes all."""

    def __init__(self, mode: Literal["RGB", "L"], transform: Callable[[Image.Image], Any], short: int | None) -> None:
        self.mode, self.transform, self.short = mode, transform, short

    def __call__(self, image: Image.Image) -> Any:
        image = convert_image(upright(image), self.mode)
        if self.short is not None:
            check_resized(image, self.short)
        return self.transform(image)
