"""Images with a class for each pixel in the layout of ADE20K's scene parsing benchmark."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from softmaxfree.data.images import warn_left_out
from softmaxfree.data.label_scan import scan_labels
from softmaxfree.data.mask_classes import IGNORED, MaskClasses
from softmaxfree.data.mask_folders import by_name, pair_by_name
from softmaxfree.data.mask_images import MaskImages, MaskPair
from softmaxfree.data.segmentation import AbstractMasksDataModule
from softmaxfree.errors import InputError
from softmaxfree.images import HIDDEN, IMAGE_SUFFIXES, MAX_PIXELS, is_hidden, is_of_system
from softmaxfree.printing import few

__all__ = ["IGNORED", "Ade20kDataModule"]

_FOLDERS = {"train": "training", "val": "validation"}
_NAMES_FILE = "objectInfo150.txt"


class Ade20kDataModule(AbstractMasksDataModule):
    """Semantic segmentation: `root/images/{training,validation}`, `root/annotations/{training,validation}`.

    This is the layout of SceneParse150, `ADEChallengeData2016`, with a PNG of labels for each image: grey of 8 or 16
    bits, or a palette, whose indices count. See `AbstractMasksDataModule` for batches and augmentation, and
    `MaskFolderDataModule` for data of your own.

    Args:
        root: Folder of the data, or the one that holds `ADEChallengeData2016`.
        batch_size: Number of images in a batch, of each process.
        num_workers: Number of processes that prepare images; 0 prepares them in the process of the training.
        img_size: Side of a training crop and shorter side of a validation image, in pixels.
        max_size: Longer side of an image for the network at most, in pixels; of a training image before `scale` changes
            it.
        num_classes: Number of classes in the masks, 2 at least.
        class_names: Names of the classes; null reads `objectInfo150.txt` where there is one, else takes numbers.
        reduce_zero_label: Whether label 0 in the masks is "other", which is ignored, and classes start at 1.
        augment: Whether training images are resized, cropped, mirrored and changed in colour at random.
        scale: Smallest and largest factor on the size of a training image. No side becomes smaller than 32 pixels by
            it.
        hflip: Probability that a training image is mirrored, 0 to 1.
        cat_max_ratio: Part of a training crop that one class should cover at most, 0 to 1; other crops are drawn again,
            up to ten times.
        photometric: Probability of each change of a training image's colours, 0 to 1.
        on_error: What happens at an unreadable image: "skip" leaves it out, names and counts it; "fail" stops the run.
        seed: Seed of the run.
        missing_classes: What happens if a class is in no training mask: "allow" goes on; "fail" stops the run.
        max_pixels: Number of pixels (height times width) above which an image counts as unreadable; null for no limit.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        num_workers: int = 8,
        img_size: int = 512,
        max_size: int = 2048,
        num_classes: int = 150,
        class_names: Sequence[str] | None = None,
        reduce_zero_label: bool = True,
        augment: bool = True,
        scale: tuple[float, float] = (0.5, 2.0),
        hflip: float = 0.5,
        cat_max_ratio: float = 0.75,
        photometric: float = 0.5,
        on_error: Literal["skip", "fail"] = "skip",
        seed: int = 42,
        missing_classes: Literal["allow", "fail"] = "fail",
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            img_size=img_size,
            max_size=max_size,
            augment=augment,
            scale=scale,
            hflip=hflip,
            orientation="upright",
            cat_max_ratio=cat_max_ratio,
            photometric=photometric,
            on_error=on_error,
            seed=seed,
            max_pixels=max_pixels,
        )
        most = IGNORED - 1 if reduce_zero_label else IGNORED
        if not 2 <= num_classes <= most:  # one class is always right
            raise InputError(
                f"data.num_classes must be from 2 to {most}, got {num_classes}; to tell one class from what is "
                "around it, both are classes, and data.reduce_zero_label is false"
            )
        if class_names is not None and len(class_names) != num_classes:
            raise InputError(f"data.class_names has {len(class_names)} names for data.num_classes = {num_classes}")
        self.root = Path(root).expanduser()
        self.num_classes = num_classes
        self.class_names = tuple(class_names or ())
        self.reduce_zero_label = reduce_zero_label
        self.missing_classes = missing_classes

    def setup(self, stage: str) -> None:
        """Find the images, and those of the training split only to fit.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            FileNotFoundError: a folder is not there.
            InputError: this is another layout, an image lacks its labels, or labels their image, or the labels are not
                those of `num_classes` classes.
        """
        root = _find_root(self.root)
        self.class_names = self.class_names or _read_names(root, self.num_classes)
        for split in ("val", "train") if stage == "fit" else ("val",):
            if split not in self._sets:
                pairs = _pairs(root, _FOLDERS[split])
                self._check_classes(root, split, pairs)
                self._use(split, pairs, self._classes())

    def _classes(self) -> MaskClasses:
        first = int(self.reduce_zero_label)
        allowed = (
            f"allowed are 0 to {self.num_classes - 1 + first}, for data.num_classes = {self.num_classes} and "
            f"data.reduce_zero_label = {self.reduce_zero_label}, and {IGNORED} for what is ignored"
            + (", as is 0" if first else "")
        )
        values = tuple(range(first, self.num_classes + first))
        return MaskClasses(values, self.class_names, frozenset({IGNORED, *range(first)}), allowed)

    def _check_classes(self, root: Path, split: str, pairs: Sequence[MaskPair]) -> None:
        folder, classes = root / "annotations" / _FOLDERS[split], self._classes()
        images = MaskImages(pairs, classes, self._smallest(split == "train"), self.max_pixels)
        scan = scan_labels(images.values, len(images), classes.values, str(folder))
        self._pixels[split] = Counter({label: scan.pixels.get(value, 0) for label, value in enumerate(classes.values)})
        absent = [value for value in classes.values if value not in scan.pixels]
        if not scan.looked or not absent:
            return
        named = [f"{value} ({self.class_names[value - classes.values[0]]})" for value in absent]
        message = f"{folder}: {few(named, 5)} occur nowhere; {scan}"
        if len(absent) == self.num_classes:
            raise InputError(f"{folder}: every pixel is ignored; {scan}; {classes.allowed}")
        if self.missing_classes == "fail":
            if split == "train":
                raise InputError(f"{message}; {classes.allowed}; data.missing_classes = allow lets it be so")
            rank_zero_warn(f"{message}; they have no score")


def _pairs(root: Path, split: str) -> list[MaskPair]:
    left_out: Counter[str] = Counter()
    images = _files(root / "images" / split, IMAGE_SUFFIXES, left_out)
    labels = _files(root / "annotations" / split, (".png",), left_out)
    warn_left_out(root / "images" / split, left_out)
    return pair_by_name(images, labels)


def _files(folder: Path, suffixes: Collection[str], left_out: Counter[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {folder}")
    files = []
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if is_of_system(path.name):
            continue
        if is_hidden(path.name):
            left_out[HIDDEN] += 1
        elif suffix in suffixes:
            files.append(path)
        else:
            left_out["folder" if path.is_dir() else suffix or "without suffix"] += 1
    if not files:
        raise InputError(f"data.root: {folder} has no files {', '.join(sorted(suffixes))}")
    return by_name(files, folder)


def _find_root(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {root}")
    inner = root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else root
    first_images = (path.name for path in (root / "images" / "training").glob("*_seg.png"))
    if (root / "index_ade20k.pkl").exists() or (root / "images" / "ADE").exists() or next(first_images, None):
        raise InputError(
            f"data.root: {root} is the full ADE20K; what is read is its benchmark SceneParse150, the folder "
            "ADEChallengeData2016 with images/ and annotations/"
        )
    return root


def _read_names(root: Path, num_classes: int) -> tuple[str, ...]:
    file = root / _NAMES_FILE
    if not file.is_file():
        return tuple(str(i) for i in range(num_classes))
    rows = file.read_text(encoding="utf-8").splitlines()[1:]  # after the head: Idx, Ratio, Train, Val, Name
    names = tuple(row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip())
    if len(names) != num_classes:
        raise InputError(f"{file} names {len(names)} classes, data.num_classes is {num_classes}")
    return names
