"""Slides of one's own as a LightningDataModule: features that a patch encoder wrote, and a table of labels."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from softmaxfree.arguments import require_number, require_whole
from softmaxfree.data.places import PLACES
from softmaxfree.data.splits import EVERY
from softmaxfree.errors import InputError
from softmaxfree.images import natural_key
from softmaxfree.mil.data.arrays import look, read
from softmaxfree.mil.data.labels import Labels, bins_of, class_labels, read_labels, survival_labels
from softmaxfree.mil.data.loading import AbstractBagsDataModule
from softmaxfree.mil.data.slides import SlideBags, find_files, look_at
from softmaxfree.mil.data.splits import Split, check_split, draw, find_split, read_split
from softmaxfree.printing import printable

__all__ = ["BagsDataModule"]

_SHOWN = 5  # slides or classes in one message


class BagsDataModule(AbstractBagsDataModule):
    """Bags of patch features: TRIDENT's and CLAM's HDF5, CLAM's pt, npy, and the folders of torchmil.

    A bag is read when it is needed, in the precision of its file; files of HDF5 that lie in one piece, npy and pt are
    mapped to memory. Without a file of splits, slides are drawn by case: a fifth of the cases of each class validates;
    with `folds` one part of the cases tests, and of the rest a fifth validates.

    Args:
        features: Folder with a file of features for each slide (.h5, .pt or .npy); CLAM's folder of `h5_files` and
            `pt_files`; or torchmil's folder of `features`, `labels`, `coords` and `inst_labels`.
        labels: CSV file with the columns `slide_id`, `label` and, if wanted, `case_id`; null where torchmil's folder or
            TransMIL's file of a fold has the labels.
        coords: Folder with a file of coordinates for each slide, where they are not beside the features, such as
            TRIDENT's `patches`.
        split: CSV file that says which slides train, validate and test, of CLAM, of TransMIL or of a run; or a folder
            with one for each fold. Null draws the split by the seed, where no file tells it.
        folds: Number of parts into which cases are drawn, of which one tests; null for no test split.
        fold: Number of the part that tests, from 0; also of the file in the folder `split`.
        column: Column of the labels in their table; null is `label`.
        classes: Names of all classes in their order, such as grades, by which a weighted kappa counts; null orders them
            by their names.
        target: Kind of the labels: "class"; or "survival", with the columns `time` and `event` (1 where it was seen).
        bins: Number of bins into which times are divided; for survival only.
        step: Distance of neighbouring patches in pixels at level 0; null takes it from the attributes of the files, or
            else from the distances.
        max_patches: Largest number of patches of a training bag, drawn anew each epoch; null takes all.
        use_coords: Whether coordinates are read; "auto" reads them if all slides have them.
        batch_size: Number of bags in a batch, of each process; shorter bags are padded.
        num_workers: Number of processes that read bags; each holds one or two.
        seed: Seed of the run.
    """

    unit = "slide"
    preparation: ClassVar[tuple[str, ...]] = ("step", "target", "bins", "use_coords")

    def __init__(
        self,
        features: str,
        labels: str | None = None,
        coords: str | None = None,
        split: str | None = None,
        folds: int | None = None,
        fold: int | None = None,
        column: str | None = None,
        classes: list[str] | None = None,
        target: Literal["class", "survival"] = "class",
        bins: int = 4,
        step: float | None = None,
        max_patches: int | None = None,
        use_coords: bool | Literal["auto"] = "auto",
        batch_size: int = 1,
        num_workers: int = 2,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=[*PLACES], logger=False)
        require_whole("data.batch_size", batch_size, 1)
        require_whole("data.num_workers", num_workers, 0)
        require_whole("data.bins", bins, 2)
        if max_patches is not None:
            require_whole("data.max_patches", max_patches, 1)
        if step is not None:
            require_number("data.step", step, 1)
        if folds is not None:
            require_whole("data.folds", folds, 2)
            if fold is None or not 0 <= fold < folds:
                raise InputError(f"data.fold must be 0 to {folds - 1} with data.folds {folds}, got {fold}")
        elif fold is not None and split != EVERY and not (split and Path(split).expanduser().is_dir()):
            raise InputError(f"data.fold {fold} has no meaning without data.folds, or a folder of files in data.split")
        self.features, self.labels, self.coords, self.split = features, labels, coords, split
        self.folds, self.fold, self.column, self.target, self.bins = folds, fold, column, target, bins
        self.step, self.max_patches, self.use_coords = step, max_patches, use_coords
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.classes = None if classes is None else [str(name) for name in classes]
        if self.classes is not None and len(set(self.classes)) < max(len(self.classes), 2):
            raise InputError(f"data.classes must be two or more different names, got {self.classes}")
        self.known_classes: tuple[str, ...] = ()
        self.class_names: tuple[str, ...] = ()
        self.class_counts: tuple[int, ...] = ()
        self.cuts: list[float] = []
        self.in_dim = 0
        self.found = ""
        self.with_coords = False
        self.remarks: list[str] = []
        self.split_rows: list[tuple[str, str]] = []
        self.cases: dict[str, str] = {}
        self.bags: dict[str, SlideBags] = {}

    @property
    def num_classes(self) -> int:
        """Classes, or bins of time."""
        return len(self.class_names)

    @property
    def num_images(self) -> dict[str, int]:
        """Bags of each split."""
        return {name: len(bags) for name, bags in self.bags.items() if len(bags)}

    @property
    def data_config(self) -> dict[str, Any]:
        """What a bag must be like, for those who use the weights."""
        return {"in_dim": self.in_dim, "step": self.step, "target": self.target, "cuts": self.cuts}

    @property
    def tests(self) -> bool:
        """Whether there is a test split."""
        return bool(len(self.bags.get("test", ())))

    def names_of(self, split: str) -> list[str]:
        """Return the names of the slides of "train", "val" or "test"."""
        return [slide.name for slide in self.bags[split].slides] if split in self.bags else []

    def labels_digest(self, split: str) -> str:
        """Return a digest of the labels of the slides of "train", "val" or "test"."""
        labels = self.bags[split].labels if split in self.bags else ()
        return hashlib.sha256(repr([label.tolist() for label in labels]).encode()).hexdigest()[:32]

    def setup(self, stage: str) -> None:
        """Find the slides, split and label them.

        Args:
            stage: not used.

        Raises:
            FileNotFoundError: a folder or table is missing.
            InputError: something does not fit; that names slide and file.
        """
        if self.bags:
            return
        folder = Path(self.features).expanduser()
        files = find_files(folder)
        beside = {name: folder / name for name in ("coords", "inst_labels") if (folder / name).is_dir()}
        if self.coords is not None:
            beside["coords"] = Path(self.coords).expanduser()
        more = {name: find_files(path, f"data.{name}") for name, path in beside.items()}
        given: Split | None = None
        of_file: dict[str, str] = {}
        if self.split not in (None, EVERY):
            self.split = str(find_split(str(self.split), self.fold))
            given, of_file = read_split(Path(self.split))
        labels = self._labels(folder, files, of_file)
        names = self._names(labels, files, given)
        slides = look_at(names, files, more.get("coords", {}), more.get("inst_labels", {}))
        cases = {name: labels.cases[name] for name in names}
        self.cases = cases if labels.by_case else {}
        split = self._split(cases, labels, given)
        self.in_dim = slides[0].features.shape[1]
        targets = self._targets(labels, split)
        self.with_coords = self._uses_coords(slides)
        for side in ("train", "val", "test"):
            own = [slide for slide in slides if split[slide.name] == side]
            most = self.max_patches if side == "train" else None
            tensors = [targets[slide.name] for slide in own]
            self.bags[side] = SlideBags(own, tensors, self.step, most, self.with_coords)
        self.found = self._told(folder, labels, files, names, slides)

    def _labels(self, folder: Path, files: dict[str, Path], of_file: dict[str, str]) -> Labels:
        if self.labels is not None:
            return read_labels(Path(self.labels).expanduser(), self.column, self.target == "survival")
        if of_file and self.target == "class":
            values: dict[str, tuple[str, ...]] = {name: (label,) for name, label in of_file.items()}
            return Labels(Path(str(self.split)), {name: name for name in values}, values)
        if (folder / "labels").is_dir() and self.target == "class":
            paths = find_files(folder / "labels", "data.features")
            values = {name: (_label(paths[name], name),) for name in files if name in paths}
            return Labels(folder / "labels", {name: name for name in values}, values)
        raise InputError(f"data.labels is missing: a CSV file with a label of each slide of {folder}")

    def _names(self, labels: Labels, files: dict[str, Path], given: Split | None) -> list[str]:
        """The slides that are used: those of the split, or of the table."""
        if given is not None and (unknown := [name for name in given if name not in labels.values]):
            more = f" ({len(unknown)} such slides)" if len(unknown) > 1 else ""
            raise InputError(
                f"data.split: {self.split} has slide {unknown[0]}, which has no label in {labels.path}{more}"
            )
        names = list(labels.values if given is None else given)
        if absent := [name for name in names if name not in files]:
            shown = ", ".join(absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
            if given is not None or len(absent) == len(names):
                where = self.split if given is not None else labels.path
                raise InputError(
                    f"data.features: {self.features} has no file of {len(absent)} of the {len(names)} slides of "
                    f"{where}: {shown}"
                )
            near = {_plain(name): name for name in files}
            hint = next((f"; a file is called {near[_plain(name)]}" for name in absent if _plain(name) in near), "")
            some = f"{len(absent)} of the {len(names)} slides of {labels.path}"
            self._remark(f"{some} have no features, and are left out: {shown}{hint}")
        return [name for name in names if name in files]

    def _split(self, cases: dict[str, str], labels: Labels, given: Split | None) -> Split:
        if self.split == EVERY:
            return dict.fromkeys(cases, "val")
        if given is not None:
            check_split(given, cases, str(self.split))
            return given
        last = -1 if self.target == "survival" else 0  # the event, or the class
        strata = {name: labels.values[name][last] for name in cases}
        split = draw(cases, strata, self.seed, self.folds, self.fold)
        self.split_rows = list(split.items())
        return split

    def _targets(self, labels: Labels, split: Split) -> dict[str, Tensor]:
        trained = [name for name, side in split.items() if side == "train"]
        if self.target == "class":
            classes, targets = class_labels(labels, list(split), self.known_classes, self.classes)
            self.class_names = tuple(classes)
            counts = Counter(int(targets[name]) for name in trained)
            self.class_counts = tuple(counts[i] for i in range(len(classes))) if trained else ()
            if lacking := [name for i, name in enumerate(classes) if trained and not counts[i]]:
                raise InputError(f"data.split: there are no slides of {lacking[0]} to train on")
            held = {int(targets[name]) for name, side in split.items() if side == "val"}
            if trained and len(held) == 1:
                self._cannot_choose(f"all slides to validate are of {classes[held.pop()]}")
            return targets
        told = survival_labels(labels, list(split))
        if trained:
            self.cuts = bins_of([told[name] for name in trained], self.bins)
        elif self.known_classes:  # by which they were numbered
            self.cuts = [float(name.rpartition(" ")[2]) for name in self.known_classes[:-1]]
        digits = next(n for n in range(6, 18) if len({f"{cut:.{n}g}" for cut in self.cuts}) == len(self.cuts))
        self.cuts = [float(f"{cut:.{digits}g}") for cut in self.cuts]  # as their names tell them
        self.class_names = (*(f"up to {cut:.{digits}g}" for cut in self.cuts), "later")
        validating = [told[name] for name, side in split.items() if side == "val"]
        if trained and not any(event and time < other for time, event in validating for other, _ in validating):
            self._cannot_choose("no slide to validate has an event before the time of another one")
        bins = {name: sum(time > cut for cut in self.cuts) for name, (time, _) in told.items()}
        self.class_counts = tuple(Counter(bins[name] for name in trained)[i] for i in range(self.num_classes))
        return {
            name: torch.tensor([bins[name], event, time], dtype=torch.float64) for name, (time, event) in told.items()
        }

    def _cannot_choose(self, why: str) -> None:
        """Refuse slides by which no score is measured, so that the first epoch would count as the best."""
        hint = "run.seed draws another split" if self.split is None else f"they are those of {self.split}"
        raise InputError(f"data.split: {why}, so that nothing tells the best epoch; {hint}")

    def _uses_coords(self, slides: Sequence[Any]) -> bool:
        lacking = [slide for slide in slides if slide.coords is None]
        if self.use_coords is True and lacking:
            raise InputError(
                f"data.use_coords: slide {lacking[0].name} has no coordinates in {lacking[0].features.path}"
                f" ({len(lacking)} such slides); data.coords is a folder of them"
            )
        if lacking and len(lacking) < len(slides) and self.use_coords == "auto":
            some = f"{len(lacking)} of {len(slides)} slides have none, such as {lacking[0].name}"
            self._remark(f"coordinates are not used: {some}; data.coords is a folder of them")
        return not lacking and bool(self.use_coords)

    def _told(
        self,
        folder: Path,
        labels: Labels,
        files: dict[str, Path],
        names: list[str],
        slides: Sequence[Any],
    ) -> str:
        sizes = sorted(slide.features.shape[0] for slide in slides)
        counts = [f"{len(self.bags[side])} to {what}" for side, what in _SIDES.items() if len(self.bags[side])]
        how = f" (by {self.split})" if self.split not in (None, EVERY) else ""
        if self.split is None:
            part = f", fold {self.fold} of {self.folds}" if self.folds else ""
            how = f" (drawn by {'case' if labels.by_case else 'slide'} and seed {self.seed}{part})"
        what = "classes" if self.target == "class" else "bins of time"
        parts = [
            f"{len(names)} slides of {len({labels.cases[name] for name in names})} cases, {sizes[0]:,} to "
            f"{sizes[-1]:,} patches (median {sizes[len(sizes) // 2]:,}) of {self.in_dim} numbers",
            f"{', '.join(counts)}{how}",
            f"{what} {', '.join(self.class_names[:_SHOWN])}{', ...' * (self.num_classes > _SHOWN)}",
            "with coordinates" if self.with_coords else "without coordinates",
        ]
        if extra := len(files.keys() - set(names)):
            unused = sorted(files.keys() - set(names), key=natural_key)
            shown = ", ".join(unused[:_SHOWN]) + ", ..." * (extra > _SHOWN)
            where = "a label" if self.split in (None, EVERY) else "a split"
            parts.append(f"{extra} file{'s' * (extra > 1)} of features without {where} not used: {shown}")
        return printable(f"{folder}: {'; '.join(parts)}")

    def _remark(self, text: str) -> None:
        self.remarks.append(text)
        rank_zero_warn(text)


_SIDES = {"train": "train", "val": "validate", "test": "test"}


def _plain(name: str) -> str:
    """A name as it is where case and leading zeros do not count, which a spreadsheet may change."""
    return name.casefold().lstrip("0")


def _label(path: Path, slide: str) -> str:
    """One of torchmil's labels: an array of one number."""
    values = read(look(path, "labels", slide), slide=slide).flatten()
    if len(values) != 1:
        raise InputError(f"slide {slide}: {path} must hold one label, got {len(values)}")
    value = values[0].item()
    if not math.isfinite(value):
        raise InputError(f"slide {slide}: {path} must hold a number, got {value}")
    return str(int(value)) if value == int(value) else repr(value)
