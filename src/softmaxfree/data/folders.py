"""Labelled images in folders (ImageNet's layout), in tar files, or from any source that timm can name."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset
from torch.utils.data import Dataset, IterableDataset

from softmaxfree.data.augmentation import create_eval_transform, create_train_transform
from softmaxfree.data.class_folders import ClassFolders
from softmaxfree.data.images import AbstractImagesDataModule, ReadableImages, collate_readable, warn_left_out
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS, check_resized, convert_image, read_image, upright

__all__ = ["ImageFolderDataModule"]

_FOLDERS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}


class ImageFolderDataModule(AbstractImagesDataModule):
    """Images by class, augmented as timm does.

    Without a `source`, `root` holds `train` and `val` (or `validation`), each with a folder of images a
    class, or `train.tar` and `val.tar` with such folders inside. A class may have folders inside: its images are
    those at any depth.

    Args:
        root: folder of the data; for a named source what timm makes of it, mostly a cache.
        source: empty, or a name for `timm.data.create_dataset`: `torch/...`, `hfds/...`, `wds/...`.
        source_args: further arguments of `create_dataset`, such as `input_key` and `target_key`; without a source
            only `class_map`.
        train_split: the source's name of the training split.
        val_split: the source's name of the validation split.
        img_size: height and width in pixels.
        in_chans: 3 for colour, 1 for grey.
        batch_size: images a process and step.
        num_workers: worker processes.
        mean: of each channel, of values in [0, 1].
        std: of each channel.
        scale: part of the image's area that a training crop covers.
        ratio: width over height of a training crop.
        hflip: probability of a mirrored training image.
        color_jitter: strength of the colour jitter; not used where `auto_augment` is.
        auto_augment: timm's name of the augmentation, such as `rand-m9-mstd0.5-inc1`; null for none.
        train_interpolation: of training images: bilinear, bicubic or random.
        re_prob: probability of erasing a part of a training image.
        re_mode: what is put there: `const`, `rand` or `pixel`.
        interpolation: of validation images.
        crop_pct: part of the resized validation image's side that the centre crop keeps.
        on_error: what an unreadable image does: stop the run, or be left out, named and counted. A streamed
            source has its own way.
        seed: seed of the run.
        max_pixels: height times width from which an image counts as unreadable; null is no limit.
    """

    preparation: ClassVar[tuple[str, ...]] = ("img_size", "in_chans", "mean", "std", "interpolation", "crop_pct")

    def __init__(
        self,
        root: str,
        source: str = "",
        source_args: dict[str, Any] | None = None,
        train_split: str = "train",
        val_split: str = "validation",
        img_size: int = 224,
        in_chans: Literal[1, 3] = 3,
        batch_size: int = 128,
        num_workers: int = 8,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.4,
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
        if not len(mean) == len(std) == in_chans:
            raise InputError(f"data.mean and data.std need data.in_chans = {in_chans} values, got {mean} and {std}")
        self.root = Path(root).expanduser()
        self.source = source
        self.source_args = source_args or {}
        self.data_config: dict[str, Any] = {
            "input_size": (in_chans, img_size, img_size),
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
            "color_jitter": color_jitter,
            "auto_augment": auto_augment,
            "interpolation": train_interpolation,
            "re_prob": re_prob,
            "re_mode": re_mode,
        }
        self._mode: Literal["RGB", "L"] = "RGB" if in_chans == 3 else "L"
        self._transform("train"), self._transform("val")  # which name a wrong argument now

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None where the source does not tell."""
        return len(self.class_names) or None

    def setup(self, stage: str) -> None:
        """Find the images.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            FileNotFoundError: there is no such folder.
            InputError: a split is missing or has no images, or the splits differ in their classes.
        """
        if self._sets:
            return
        datasets = {split: self._open(split) for split in ("train", "val")}
        names = {split: _class_names(dataset) for split, dataset in datasets.items()}
        if names["train"] != names["val"]:
            raise InputError(f"the classes of the splits differ: {_difference(names)}")
        self.class_names = names["val"]
        self._sets = {split: self._prepare(split, dataset) for split, dataset in datasets.items()}

    def _open(self, split: str) -> Any:
        if not self.source:
            if unknown := self.source_args.keys() - {"class_map"}:
                raise InputError(f"data.source_args without a data.source may be class_map, got {', '.join(unknown)}")
            root = _split_folder(self.root, split)
            folders = ClassFolders(root, _FOLDERS[split], self._mode, self.max_pixels, **self.source_args)
            warn_left_out(root, folders.left_out)
            return folders
        try:
            return create_dataset(
                self.source,
                root=str(self.root),
                split=self._splits[split],
                search_split=True,
                is_training=split == "train",
                batch_size=self.batch_size,
                seed=self.seed,
                input_img_mode="" if self._streamed() else self._mode,  # streams are converted below
                **self.source_args,
            )
        except (RuntimeError, AssertionError) as error:  # timm's for "nothing there"
            raise InputError(f"data.root: no images in {self.root}: {error}") from error

    def _streamed(self) -> bool:
        return self.source.lower().startswith(("wds/", "hfids/"))

    def _transform(self, split: str) -> Any:
        if split == "train":
            return create_train_transform(self.data_config, self._augment)
        return create_eval_transform(self.data_config)

    def _prepare(self, split: str, dataset: Any) -> Dataset:
        short = None if split == "train" else int(self.data_config["input_size"][-1] / self.data_config["crop_pct"])
        transform = _Converted(self._mode, self._transform(split), short)
        if not isinstance(dataset, IterableDataset):
            if hasattr(dataset, "loader"):  # torchvision's data sets of files
                dataset.loader = partial(read_image, mode=self._mode, max_pixels=self.max_pixels)
            return ReadableImages(dataset, transform, max_pixels=self.max_pixels)
        stream: Any = dataset
        stream.transform = transform
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


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {root}")
    if len(folders := [name for name in _FOLDERS[split] if (root / name).is_dir()]) > 1:
        raise InputError(f"data.root: {root} has both {' and '.join(folders)}; one of them must go")
    for name in _FOLDERS[split]:
        for candidate in (root / name, root / f"{name}.tar"):
            if candidate.exists():
                return candidate
    found = ", ".join(sorted(path.name for path in root.iterdir())) or "nothing"
    raise InputError(f"data.root: {root} needs a folder {' or '.join(_FOLDERS[split][:2])}; it holds {found}")


def _class_names(dataset: Any) -> tuple[str, ...]:
    reader = getattr(dataset, "reader", dataset)
    classes = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return tuple(str(name) for name in sorted(classes, key=classes.__getitem__))


def _difference(names: dict[str, tuple[str, ...]]) -> str:
    train, val = set(names["train"]), set(names["val"])
    parts = [
        f"only in {split}: {', '.join(sorted(only))}"
        for split, only in (("train", train - val), ("val", val - train))
        if only
    ]
    return "; ".join(parts)
