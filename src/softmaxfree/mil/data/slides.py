"""Slides: which file holds the features of each, which its coordinates, and bags read from them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from softmaxfree.errors import InputError
from softmaxfree.mil.curve import infer_step
from softmaxfree.mil.data.arrays import SUFFIXES, Array, look, names_in, read
from softmaxfree.mil.data.bag import Bag
from softmaxfree.mil.data.lattice import require_cells, step_of

__all__ = ["IDS", "MISSING", "Slide", "SlideBags", "find_files", "look_at", "read_coords", "slide_id"]

IDS = ("slide_id", "slide", "slide_path", "bag_id", "bag", "id")
"""Names of the column of slides in tables, the first that is there counts."""

MISSING = ("nan", "na", "n/a", "none", "null")
"""As pandas and others write what is not there, in lower case."""

_OF_SLIDES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".dcm", ".czi", ".jpg", ".png")
_FOLDERS = ("h5_files", "pt_files", "features")  # of CLAM, which writes both; of torchmil
_SHOWN = 5


@dataclass(frozen=True)
class Slide:
    """Where a bag is.

    Attributes:
        name: of the slide.
        features: the array.
        coords: the array of the coordinates; None where there is none.
        instances: the array of labels of the patches; None where there is none.
    """

    name: str
    features: Array
    coords: Array | None
    instances: Array | None


def slide_id(text: str) -> str:
    """Return the name of a slide, which may be given as the name or path of a file, also `NAME.svs.h5`."""
    name = re.split(r"[/\\]", text.strip())[-1]
    for suffixes in (SUFFIXES, _OF_SLIDES):
        stem, dot, suffix = name.rpartition(".")
        name = stem if dot and f".{suffix.lower()}" in suffixes else name
    return name


def find_files(folder: Path, argument: str = "data.features") -> dict[str, Path]:
    """Find the file of each slide.

    Args:
        folder: with files, or with CLAM's `h5_files` and `pt_files`, or torchmil's `features`.
        argument: where it was given, for messages.

    Returns:
        Files by slide. Of CLAM's two files of a slide the HDF5, which has coordinates, is taken.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: it holds no features, or one folder has two files of a slide.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument}: there is no folder {folder}")
    inner = [folder / name for name in _FOLDERS if (folder / name).is_dir()]
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for place in inner or [folder]:
            for path in sorted(place.glob(f"*{suffix}")):
                name = slide_id(path.name)
                name = name.removesuffix("_patches") if "coords" in argument else name  # as TRIDENT calls them
                if (first := found.setdefault(name, path)) != path and first.parent == path.parent:
                    raise InputError(f"{argument}: two files of slide {name}: {first} and {path.name}")
    if not found:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:_SHOWN]) or "nothing"
        raise InputError(f"{argument}: {folder} holds no file of features ({', '.join(SUFFIXES)}), but {there}")
    return found


def look_at(
    names: Iterable[str],
    files: dict[str, Path],
    coords_files: dict[str, Path],
    instance_files: dict[str, Path],
    *,
    bar: bool = True,
) -> list[Slide]:
    """Look at the files of slides, with a bar on a terminal; no features are read.

    Args:
        names: of the slides; all have a file.
        files: of their features.
        coords_files: of coordinates that are not beside the features.
        instance_files: of labels of patches that are not beside the features.
        bar: whether a terminal shows how far it is.

    Returns:
        The slides.

    Raises:
        InputError: a file is broken or has no features, a bag is empty, widths differ, or coordinates or labels of
            patches are not as many as patches; each names slide and file.
    """
    slides: list[Slide] = []
    for name in tqdm(list(names), desc="slides", unit="slide", disable=None if bar else True, leave=False):
        slide = _look(name, files[name], coords_files.get(name), instance_files.get(name))
        if slides and slide.features.shape[1] != slides[0].features.shape[1]:
            width, first = slide.features.shape[1], slides[0].features
            raise InputError(
                f"slide {name}: {slide.features.path} has features of {width} numbers, and slide {slides[0].name}, "
                f"{first.path}, of {first.shape[1]}; a run takes one encoder"
            )
        slides.append(slide)
    return slides


def _look(name: str, path: Path, coords_path: Path | None, instances_path: Path | None) -> Slide:
    keys = names_in(path, name)
    features = look(path, "features", name)
    if not all(features.shape):
        raise InputError(f"slide {name}: {path} is an empty bag, of shape {features.shape}")
    if len(features.shape) != 2:
        raise InputError(f"slide {name}: features must be (patches, numbers), but {path} has {features.shape}")
    coords = _beside(name, path, keys, "coords", coords_path)
    instances = _beside(name, path, keys, "inst_labels", instances_path)
    for what, array, shape in (("coordinates", coords, (2,)), ("labels of patches", instances, ())):
        wanted = (features.shape[0], *shape)
        column = (*wanted, 1) if array is instances else wanted
        if array is not None and array.shape not in (wanted, column):
            raise InputError(f"slide {name}: {what} must be {wanted}, but {array.path} has {array.shape}")
    return Slide(name, features, coords, instances)


def _beside(name: str, path: Path, keys: Sequence[str], key: str, other: Path | None) -> Array | None:
    if other is not None:
        return look(other, key, name)
    return look(path, key, name) if key in keys else None


def read_coords(slide: Slide, step: float | None = None) -> tuple[np.ndarray, float]:
    """Read coordinates.

    Args:
        slide: whose.
        step: of the lattice, which is given; None takes it from attributes or else from the coordinates.

    Returns:
        (N, 2) float64 pixels (x, y) at level 0; and the step.

    Raises:
        InputError: there are none, they are not finite, or patches fall together; that names slide and file.
    """
    if slide.coords is None:
        raise InputError(f"slide {slide.name}: there are no coordinates in {slide.features.path}; see data.coords")
    coords = read(slide.coords, slide=slide.name).double().numpy()
    if not np.isfinite(coords).all():
        raise InputError(f"slide {slide.name}: coordinates in {slide.coords.path} are not finite")
    how = "given"
    if step is None:
        step, how = step_of(slide.coords.attributes), "by the attributes of the file"
    if step is None:
        step, how = infer_step(torch.from_numpy(coords)), "inferred from the distances"
    require_cells(coords, step, how, slide.name, slide.coords.path)
    return coords, step


class SlideBags(Dataset[Bag]):
    """Bags that are read when they are asked for, so that one is in memory at a time.

    Args:
        slides: of the bags.
        labels: as many, see `Bag`.
        step: of the lattice of coordinates; None takes it from each file.
        max_patches: at most so many patches of a bag, drawn anew each time; None takes all.
        with_coords: whether coordinates are read.
    """

    def __init__(
        self,
        slides: Sequence[Slide],
        labels: Sequence[Tensor],
        step: float | None = None,
        max_patches: int | None = None,
        with_coords: bool = True,
    ) -> None:
        self.slides, self.labels = list(slides), list(labels)
        self.step, self.max_patches, self.with_coords = step, max_patches, with_coords

    def __len__(self) -> int:
        return len(self.slides)

    def filename(self, index: int, absolute: bool = False) -> str:
        """Return the name of a slide, as reports call it; it is the same whether `absolute` or not."""
        return self.slides[index].name

    def __getitem__(self, index: int) -> Bag:
        slide = self.slides[index]
        total = slide.features.shape[0]
        rows = None
        if self.max_patches is not None and total > self.max_patches:
            rows = torch.randperm(total)[: self.max_patches].sort().values.numpy()
        features = _finite(read(slide.features, rows, slide.name), slide)
        coords, step = None, None
        if self.with_coords:
            places, step = read_coords(slide, self.step)
            coords = torch.from_numpy(places if rows is None else places[rows])
        instances = None
        if slide.instances is not None:
            instances = _whole(read(slide.instances, rows, slide.name).flatten(), slide)
        return Bag(features, self.labels[index], coords, step, instances, total, index)


def _whole(instances: Tensor, slide: Slide) -> Tensor:
    if instances.is_floating_point() and not torch.equal(instances, instances.round()):  # also NaN
        bad = float(instances[instances != instances.round()][0])
        path = slide.instances.path if slide.instances is not None else ""
        what = f"labels of patches in {path} must be whole numbers, -1 where one is not known"
        raise InputError(f"slide {slide.name}: {what}; got {bad:g}")
    return instances.long()


def _finite(features: Tensor, slide: Slide) -> Tensor:
    """The features, float16 as they are; least and greatest tell in one pass whether all are finite."""
    where = f"slide {slide.name}: features in {slide.features.path}"
    if not features.is_floating_point():
        raise InputError(f"{where} must be floating-point numbers, got {features.dtype}")
    if features.dtype == torch.float64:
        features = features.float()
    if not torch.stack(features.aminmax()).isfinite().all():
        bad = (~features.isfinite().all(1)).nonzero().flatten()
        which = f"{len(bad)} of {len(features)} patches, first in number {int(bad[0])} from 0"
        raise InputError(f"{where} are NaN or infinite in {which}")
    return features
