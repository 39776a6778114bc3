"""Images and their masks in the layout of ADE20K's scene parsing benchmark."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from softmaxfree.data.images import AnnotationError, check_side, frame_hint
from softmaxfree.errors import InputError
from softmaxfree.images import IMAGE_SUFFIXES, is_hidden, open_upright, read_image

__all__ = ["IGNORED", "SceneParse"]

IGNORED = 255  # the label of pixels that count neither in training nor in a score


class SceneParse(Dataset):
    """The images and labels of one split.

    Args:
        root: folder with `images` and `annotations`.
        split: name of the folder in both.
        num_classes: number of classes.
        reduce_zero_label: whether 0 is ignored and classes start at 1.
        smallest: shorter and longer side of the smallest image that is made of one.
        max_pixels: height times width from which an image is refused.

    Attributes:
        folder: of the masks.
        class_values: what stands for each class in the masks.
        allowed: which values are, in words.
        left_out: how many files were left out, by suffix.

    Raises:
        FileNotFoundError: a folder is not there.
        InputError: it has no files, two of one name, or an image without labels, or labels without image.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        num_classes: int,
        reduce_zero_label: bool,
        smallest: tuple[int, int],
        max_pixels: int | None,
    ) -> None:
        self.left_out: Counter[str] = Counter()
        self.folder = root / "annotations" / split
        images = _files(root / "images" / split, IMAGE_SUFFIXES, self.left_out)
        labels = _files(self.folder, {".png"}, self.left_out)
        for there, missing, what in ((images, labels, "labels"), (labels, images, "image")):
            lone = sorted(there.keys() - missing.keys())
            if lone:
                raise InputError(f"data.root: {there[lone[0]]} has no {what} ({len(lone)} such files)")
        self.images = [images[stem] for stem in sorted(images)]
        self.labels = [labels[stem] for stem in sorted(images)]
        self.reduce_zero_label, self.smallest, self.max_pixels = reduce_zero_label, smallest, max_pixels
        self.class_values = range(1, num_classes + 1) if reduce_zero_label else range(num_classes)
        self.allowed = (
            f"allowed are 0 to {self.class_values[-1]}, for data.num_classes = {num_classes} and "
            f"data.reduce_zero_label = {reduce_zero_label}, and {IGNORED} for what is ignored"
            + (", as is 0" if reduce_zero_label else "")
        )

    def __len__(self) -> int:
        return len(self.images)

    def filename(self, index: int, absolute: bool = True) -> str:
        """Return the name of an image."""
        return str(self.images[index]) if absolute else self.images[index].name

    def values(self, index: int) -> np.ndarray:
        """Return a mask as its file has it.

        Args:
            index: of the image.

        Returns:
            Integers (height, width).

        Raises:
            AnnotationError: it has colours or values that are not allowed.
            InputError: it cannot be read.
        """
        path = self.labels[index]
        image = open_upright(path, self.max_pixels)
        values = np.asarray(image)
        if values.ndim != 2 or values.dtype.kind == "f":
            raise AnnotationError(
                f"{path} is an array of shape {values.shape} (mode {image.mode}); labels are the numbers of classes, "
                "in one channel of whole numbers or a palette"
            )
        values = values.astype(np.uint8) if values.dtype == bool else values
        wrong = np.unique(values[((values < 0) | (values > self.class_values[-1])) & (values != IGNORED)]).tolist()
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise AnnotationError(f"{path} has the label {', '.join(map(str, wrong[:5]))}{more}; {self.allowed}")
        return values

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.filename(index)
        image = v2.functional.pil_to_tensor(read_image(name, "RGB", self.max_pixels))
        height, width = image.shape[-2:]
        values = self.values(index)
        if values.shape != (height, width):
            raise AnnotationError(
                f"{self.labels[index]} is an array of shape {values.shape}; its image needs one of {(height, width)} "
                f"labels{frame_hint(name, values.shape)}"
            )
        check_side(name, height, width, self.smallest)
        if self.reduce_zero_label:
            values = np.where((values == 0) | (values == IGNORED), IGNORED, values - 1)
        return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(values.astype(np.uint8)))


def _files(folder: Path, suffixes: Collection[str], left_out: Counter[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {folder}")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name):
            continue
        suffix = path.suffix.lower()
        if suffix not in suffixes:
            left_out["folder" if path.is_dir() else suffix or "without suffix"] += 1
            continue
        if path.stem in files:
            raise InputError(f"data.root: {files[path.stem]} and {path.name} have the same name; remove one")
        files[path.stem] = path
    if not files:
        raise InputError(f"data.root: {folder} has no files {', '.join(sorted(suffixes))}")
    return files
