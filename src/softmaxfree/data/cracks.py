"""Cracks drawn into photographs of cells: defects to train on, of which there are few (as in arXiv 2104.04015)."""

import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["draw_cracks"]

_STEP = 8.0  # pixels from corner to corner of the line
_LENGTH = 50.0, 320.0
_DARKNESS = 0.12, 0.6  # of the line, parts of what was there
_SHADE = 0.05, 0.4  # of a part of the cell that a crack cuts off
_CUT_OFF = 0.3  # how often there is one


def draw_cracks(image: Image.Image) -> Image.Image:
    """Draw one crack or two: thin dark lines that bend by chance, some with a darker part of the cell on one side.

    Lengths and widths are meant for images of 300 pixels a side.

    Args:
        image: grey (mode L).

    Returns:
        A new image of the same size.
    """
    chance = np.random.default_rng(random.getrandbits(64))  # of the generator that timm's transforms use
    lines = Image.new("L", image.size)
    shade = np.ones(image.size[::-1], np.float32)
    for _ in range(1 if chance.random() < 0.7 else 2):
        points = _bent_line(chance, *image.size)
        ImageDraw.Draw(lines).line(points, fill=255, width=int(chance.integers(1, 4)))
        if len(points) > 4 and chance.random() < _CUT_OFF:
            side = Image.new("L", image.size)
            corner = (0.0, 0.0) if chance.random() < 0.5 else (float(image.width), float(image.height))
            ImageDraw.Draw(side).polygon([*points, corner], fill=255)
            shade *= 1 - chance.uniform(*_SHADE) * (np.asarray(side) > 0)
    soft = np.asarray(lines.filter(ImageFilter.GaussianBlur(chance.uniform(0.4, 1.2))), np.float32) / 255
    drawn = np.asarray(image, np.float32) * shade * (1 - chance.uniform(*_DARKNESS) * soft)
    return Image.fromarray(np.rint(drawn).astype(np.uint8))


def _bent_line(chance: np.random.Generator, width: int, height: int) -> list[tuple[float, float]]:
    """Returns the corners of a line that goes on until its length or the border of the image."""
    x, y = chance.uniform(0, width), chance.uniform(0, height)
    angle, bend = chance.uniform(0, 2 * math.pi), chance.normal(0, 0.03)
    points = [(x, y)]
    for _ in range(int(chance.uniform(*_LENGTH) / _STEP)):
        angle += bend + chance.normal(0, 0.16)
        x, y = x + _STEP * math.cos(angle), y + _STEP * math.sin(angle)
        points.append((x, y))
        if not (0 <= x < width and 0 <= y < height):
            break
    return points
