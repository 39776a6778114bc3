"""A network and a picture for `softmaxfree explain`, and where a pixel of the file lies in what the network sees."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from softmaxfree.cli.checkpoint import find_kind, load_classifier, load_task
from softmaxfree.errors import InputError
from softmaxfree.images import check_resized, read_image
from softmaxfree.printing import few

__all__ = ["Subject", "find_target", "load_subject"]


class Subject(NamedTuple):
    """What is explained.

    `picture` is what the network sees, and `x` the same as its input `(1, C, H, W)`. `columns` and `rows` tell where in
    the file each column and row of the picture comes from, in pixels; `file_size` is its width and height.
    """

    model: nn.Module
    kind: str
    class_names: list[str]
    picture: Image.Image
    x: Tensor
    columns: np.ndarray
    rows: np.ndarray
    file_size: tuple[int, int]

    def place(self, x: int, y: int) -> tuple[int, int]:
        """Returns the pixel of the picture that shows pixel `(x, y)` of the file.

        Args:
            x: column.
            y: row.

        Returns:
            Column and row.

        Raises:
            InputError: it is outside, or cut off.
        """
        width, height = self.file_size
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                f"--point must be in the picture, x from 0 to {width - 1} and y from 0 to {height - 1}; got {x},{y}"
            )
        (left, right), (top, bottom) = _seen(self.columns, width), _seen(self.rows, height)
        if not (left <= x <= right and top <= y <= bottom):
            raise InputError(
                f"--point must be in what the network sees, x from {left} to {right} and y from {top} to {bottom}: "
                f"the preparation cuts the rest off; got {x},{y}"
            )
        return int(np.abs(self.columns - x).argmin()), int(np.abs(self.rows - y).argmin())

    def place_in_file(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place in the file of a place in the picture, `x` and `y` from its left and top edge, pixels."""
        found = (
            float(np.interp(at - 0.5, np.arange(len(own)), own)) for at, own in ((x, self.columns), (y, self.rows))
        )
        column, row = (round(at, 1) for at in found)
        return column, row


def _seen(places: np.ndarray, side: int) -> tuple[int, int]:
    """First and last pixel of an axis of the file that the pixels of the picture are made of, by their middles."""
    half = max(float(np.abs(np.diff(places)).mean()) / 2 if len(places) > 1 else 0.5, 0.5)
    return max(0, math.ceil(places[0] - half)), min(side - 1, math.floor(places[-1] + half))


def load_subject(
    image: Path, weights: str | None, model: str | None, size: int | None, device: torch.device, max_pixels: int
) -> Subject:
    """Load a network and prepare a picture as `predict` does.

    Args:
        image: file.
        weights: checkpoint, or None for those of timm.
        model: name, where the checkpoint does not tell.
        size: shorter side for the network; None is that of the training, of a segmenter that of the picture.
        device: of the network.
        max_pixels: from which a picture is refused.

    Returns:
        Both.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: a file or argument is wrong.
    """
    kind = find_kind(weights)
    geometry: list[Any] = []
    network: Any
    if kind == "classification":
        classifier = load_classifier(weights, model, size)
        network, names = classifier.model, classifier.class_names
        config = classifier.data_config
        mode: Any = "L" if config["input_size"][0] == 1 else "RGB"
        steps: Any = create_transform(**config)
        first = next(i for i, step in enumerate(steps.transforms) if "Tensor" in type(step).__name__)
        geometry, rest = steps.transforms[:first], steps.transforms[first:]
        shorter: int | None = int(min(config["input_size"][1:]) / (config.get("crop_pct") or 1))
    else:
        if model is not None:
            raise InputError(f"--model is for classifiers, but {weights} is of {kind}")
        loaded = load_task(weights, kind, size)
        network, names, mode, shorter = loaded.task.model, loaded.class_names, "RGB", size
        rest = [lambda picture: tv.to_dtype(tv.to_image(picture), torch.float32, scale=True).as_subclass(Tensor)]
        if kind == "segmentation" and size is not None:
            geometry = [lambda picture: tv.resize(picture, loaded.resized(picture.height, picture.width, size))]
    original = read_image(image, mode, max_pixels)
    if shorter is not None:
        check_resized(original, shorter, str(image))
    picture = _apply(geometry, original)
    x = _apply(rest, picture)[None].to(device)
    columns, rows = (_apply(geometry, own) for own in _coordinates(*original.size))
    middle = picture.height // 2, picture.width // 2
    return Subject(
        network.to(device).eval(),
        kind,
        names,
        picture,
        x,
        np.asarray(columns)[middle[0]],
        np.asarray(rows)[:, middle[1]],
        original.size,
    )


def find_target(given: str | None, class_names: Sequence[str] = ()) -> int | None:
    """Return the number that `--target` means.

    Args:
        given: a number, or the name of a class; a name goes first, where classes are called by numbers.
        class_names: that may be given; empty where numbers alone may.

    Returns:
        The number, which may be out of range; None if nothing is given.

    Raises:
        InputError: it is neither.
    """
    if given is None:
        return None
    if given in class_names:
        return list(class_names).index(given)
    try:
        return int(given)
    except ValueError as error:
        allowed = f"a class ({few(class_names)}) or its number" if class_names else "the number of a detection"
        raise InputError(f"--target must be {allowed}; got {given}") from error


def _coordinates(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Pictures that hold the column and the row of each pixel: what is done to them tells what moves where."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return Image.fromarray(x), Image.fromarray(y)


def _apply(steps: list[Any], value: Any) -> Any:
    for step in steps:
        value = step(value)
    return value
