"""Images and their masks, read in pairs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from softmaxfree.data.class_folders import Listing
from softmaxfree.data.images import AnnotationError, check_side, frame_hint
from softmaxfree.data.mask_classes import COLOUR, IGNORED, MaskClasses, show_value
from softmaxfree.data.splitting import head_digest
from softmaxfree.images import open_upright, read_image
from softmaxfree.printing import few

__all__ = ["MaskImages", "MaskPair", "read_mask"]


class MaskPair(NamedTuple):
    """Files that belong together.

    Attributes:
        image: the image.
        mask: its mask.
    """

    image: Path
    mask: Path


def read_mask(path: Path, max_pixels: int | None, as_colours: bool = False) -> np.ndarray:
    """Return what a mask holds: its numbers, of a palette the indices.

    Args:
        path: of the file.
        max_pixels: height times width from which it is refused.
        as_colours: whether colours count, also those of a palette.

    Returns:
        Integers (height, width). Colours are red, green and blue as one number, `COLOUR` and more; an image in colour
        that is grey throughout is taken as numbers, unless `as_colours`.

    Raises:
        AnnotationError: it has neither whole numbers nor colours.
        InputError: it cannot be read.
    """
    image = open_upright(path, max_pixels)
    if as_colours:
        return _codes(image.convert("RGB"))
    if image.mode in ("LA", "RGBA"):
        image = image.convert(image.mode[:-1])
    values = np.asarray(image)
    if image.mode == "RGB":
        grey = (values[..., :1] == values).all()
        return values[..., 0] if grey else _codes(image)
    if values.ndim != 2 or values.dtype.kind == "f":
        raise AnnotationError(
            f"{path} is an array of shape {values.shape} (mode {image.mode}); labels are the numbers of classes, in "
            "one channel of whole numbers or a palette"
        )
    return values.astype(np.uint8) if values.dtype == bool else values


def _codes(image: Image.Image) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.int32), -1, 0)
    return COLOUR + (red << 16) + (green << 8) + blue


class MaskImages(Dataset):
    """Images with a label for each pixel.

    Args:
        pairs: the files.
        classes: of the masks.
        smallest: shorter and longer side of the smallest image that is made of one.
        max_pixels: height times width from which an image is refused.
    """

    def __init__(
        self, pairs: Sequence[MaskPair], classes: MaskClasses, smallest: tuple[int, int], max_pixels: int | None
    ) -> None:
        self.pairs, self.classes, self.smallest, self.max_pixels = pairs, classes, smallest, max_pixels

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def listing(self) -> Listing:
        """The files of the images, below the folder that holds all."""
        paths = [os.path.abspath(pair.image) for pair in self.pairs]
        root = Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
        return Listing.of_files(root, [Path(path).relative_to(root).as_posix() for path in paths])

    def label_bytes(self, index: int) -> bytes:
        """Return what tells whether a mask was changed: size and beginning of its file; none if it cannot be read."""
        mask = Path(self.pairs[index].mask)
        listing = Listing.of_files(mask.parent, [mask.name])
        try:
            return str(listing.size(0)).encode() + head_digest(listing, 0)
        except OSError:  # it is told when it is trained on
            return b""

    def filename(self, index: int, absolute: bool = True) -> str:
        """Return the name of an image."""
        image = self.pairs[index].image
        return str(image) if absolute else image.name

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
        return self._read(index)[0]

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A mask as its file has it, and its labels."""
        path = self.pairs[index].mask
        values = read_mask(path, self.max_pixels, self.classes.are_colours)
        if not self.classes.are_colours and values.max() >= COLOUR:
            raise AnnotationError(
                f"{path} is an array of shape {(*values.shape, 3)} (mode RGB); labels are the numbers of classes, in "
                "one channel of whole numbers or a palette"
            )
        labels = self.classes.labels(values)
        if wrong := self.classes.wrong(np.unique(values[labels == IGNORED]).tolist()):
            raise AnnotationError(
                f"{path} has the label {few(list(map(show_value, wrong)), 5)}; {self.classes.allowed}"
            )
        return values, labels

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.filename(index)
        image = v2.functional.pil_to_tensor(read_image(name, "RGB", self.max_pixels))
        height, width = image.shape[-2:]
        labels = self._read(index)[1]
        if labels.shape != (height, width):
            raise AnnotationError(
                f"{self.pairs[index].mask} is an array of shape {labels.shape}; its image needs one of "
                f"{(height, width)} labels{frame_hint(name, labels.shape)}"
            )
        check_side(name, height, width, self.smallest, "data.img_size, data.max_size and data.scale")
        return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(labels))
