"""The pictures that a student learns from: files or arrays, prepared as its teacher was trained."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import Tensor

from softmaxfree.data.solar import read_cells, split_cells
from softmaxfree.data.split_names import SPLIT_NAMES
from softmaxfree.errors import InputError
from softmaxfree.images import convert_image, find_images, read_image

__all__ = ["SOLAR", "Pictures", "device_of", "find_pictures", "preparation"]

SOLAR = "solar_cells"
"""Names the photographs of solar cells in place of a folder."""

_HELD = 8  # of so many pictures one is held out
_SPLITS = {name for names in SPLIT_NAMES.values() for name in names}


class Pictures(NamedTuple):
    """Pictures, split into those that are trained on and those that are held out.

    Attributes:
        sources: files, or arrays `(height, width)` or `(height, width, 3)` uint8.
        labels: number of the class of each, or none.
        class_names: of the classes.
        train: numbers of the pictures to train on.
        held: numbers of those held out.
    """

    sources: Sequence[Path | np.ndarray]
    labels: Sequence[int]
    class_names: Sequence[str]
    train: Sequence[int]
    held: Sequence[int]

    def batch(self, numbers: Sequence[int], size: int, model: Any) -> Tensor:
        """Reads pictures, resized so that the shorter side is `size` and cut to the middle, as a model takes them.

        Args:
            numbers: of the pictures.
            size: height and width in pixels.
            model: of timm, whose configuration tells mean and deviation.

        Returns:
            `(B, C, size, size)` float32, on the device of the model.

        Raises:
            InputError: a file cannot be read as an image.
        """
        config = preparation(model)
        channels = config["input_size"][0]
        mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
        pixels = [_pixels(self.sources[i], size, "L" if channels == 1 else "RGB") for i in numbers]
        return torch.stack([(each.float() / 255 - mean) / std for each in pixels]).to(device_of(model))

    def check(self, numbers: Sequence[int]) -> None:
        """Reads pictures and keeps nothing; raises InputError for a file that cannot be read as an image."""
        for i in numbers:
            if isinstance(source := self.sources[i], Path):
                read_image(source)

    def digest(self) -> str:
        """Returns what tells these pictures from others: of names and contents of files, and labels."""
        found = hashlib.sha256(repr((list(self.labels), list(self.class_names))).encode())
        for source in self.sources:
            if isinstance(source, Path):
                with source.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                found.update(repr((source.parts[-2:], content)).encode())
            else:
                found.update(np.ascontiguousarray(source).tobytes())
        return found.hexdigest()[:16]


def device_of(model: Any) -> torch.device:
    """Returns where the weights of a model are."""
    return next(model.parameters()).device


def preparation(model: Any) -> dict[str, Any]:
    """Returns how timm prepares images for a model, with the number of channels that it takes."""
    config = resolve_model_data_config(model)
    channels = get_model_input_config(model)["input_size"][0]
    config["input_size"] = (channels, *config["input_size"][1:])
    for key in ("mean", "std"):
        if len(config[key]) != channels:
            config[key] = (sum(config[key]) / len(config[key]),) * channels
    return config


def find_pictures(data: str | Path | Sequence[np.ndarray], least: int, seed: int = 0) -> Pictures:
    """Finds pictures and splits them: one of eight is held out, or of the solar cells the same quarter as always.

    Args:
        data: a folder of images, where those in folders of classes have labels; "solar_cells"; or arrays.
        least: how many are needed to train on: a batch.
        seed: of the split.

    Returns:
        The pictures.

    Raises:
        InputError: there is no such folder, or too few images.
    """
    if isinstance(data, str) and data == SOLAR:
        images, probabilities, kinds = read_cells()
        train, held = (part.tolist() for part in split_cells(probabilities, kinds))
        return Pictures(list(images), (probabilities > 0.5).long().tolist(), ("functional", "defective"), train, held)
    if isinstance(data, str | Path):
        folder = Path(data).expanduser()
        if not folder.is_dir():
            raise InputError(f"data must be a folder of images, or {SOLAR}, got {str(data)!r}: there is no such folder")
        sources: list[Any] = find_images(folder).files
        labels, names = _labels(sources, folder)
    else:
        sources, labels, names = list(data), [], []
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed)).tolist()
    num_held = max(1, len(sources) // _HELD)
    if len(sources) - num_held < least:
        need = least + max(1, -(-least // (_HELD - 1)))
        raise InputError(
            f"data must have {need} images or more, a batch of {least} and what is held out; got {len(sources)}"
        )
    return Pictures(sources, labels, names, sorted(order[num_held:]), sorted(order[:num_held]))


def _labels(files: Sequence[Path], folder: Path) -> tuple[list[int], list[str]]:
    """The classes of files in folders of classes; none where a file lies beside them, or there is one class alone.

    Folders of splits, such as `train` and `val`, are no classes: their inner folders are.
    """
    parts = [file.relative_to(folder).parts for file in files]
    if parts and all(len(part) > 2 and part[0].lower() in _SPLITS for part in parts):
        parts = [part[1:] for part in parts]
    names = sorted({part[0] for part in parts})
    if len(names) < 2 or any(len(part) == 1 for part in parts):
        return [], []
    return [names.index(part[0]) for part in parts], names


def _pixels(source: Path | np.ndarray, size: int, mode: Any) -> Tensor:
    image = read_image(source) if isinstance(source, Path) else Image.fromarray(source)
    image = convert_image(image, mode)
    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    left, top = (wide - size) // 2, (high - size) // 2
    pixels = np.array(image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
