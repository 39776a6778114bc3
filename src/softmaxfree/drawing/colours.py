"""Colours of classes: far apart for the eye, and of a class the same in every picture."""

from collections.abc import Sequence
from functools import cache

import numpy as np

__all__ = ["BACKGROUND", "UNLABELLED", "Colour", "colour", "colours", "is_background", "luminance"]

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

BACKGROUND = (72, 72, 72)
"""Of the background where everything is coloured."""

UNLABELLED = (0, 0, 0)
"""Of pixels that have no class."""

_COLOURS = 256
_LIGHTNESS = 0.4  # weight: a veil over a photograph takes its lightness from both, its hue from the class
_NO_OBJECT = {"background", "bg", "void", "other"}

# from linear RGB to the responses of the eye, and from their cube roots to lightness and two axes of colour (Oklab)
_TO_EYE = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
_TO_LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])


def colour(label: int) -> Colour:
    """Return the colour of a class; that of class 256 is again that of class 0."""
    return _palette()[label % _COLOURS]


def luminance(shown: Colour) -> float:
    """Return how bright a colour is, 0 to 1, as WCAG counts."""
    return float(_linear(np.array(shown)) @ [0.2126, 0.7152, 0.0722])


def is_background(name: str) -> bool:
    """Return whether a class of this name is what lies behind all objects."""
    return name.strip().casefold() in _NO_OBJECT


def colours(class_names: Sequence[str], background: Colour | None = None) -> list[Colour | None]:
    """Return the colour of each class of a segmenter, and what is given for its background."""
    return [background if is_background(str(name)) else colour(i) for i, name in enumerate(class_names)]


@cache
def _palette() -> list[Colour]:
    """Each colour is the one farthest from all before it, and from black, white and the greys of photographs."""
    steps = np.linspace(0, 255, 18).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    lab = _lab(candidates)
    lively = (lab[:, 0] > 0.45 * _LIGHTNESS) & (np.hypot(lab[:, 1], lab[:, 2]) > 0.06)
    candidates, lab = candidates[lively], lab[lively]
    greys = _lab(np.repeat([[0.0], [72.0], [160.0], [255.0]], 3, axis=1))
    nearest = np.linalg.norm(lab[:, None] - greys, axis=-1).min(1)
    chosen = []
    for _ in range(_COLOURS):
        best = int(nearest.argmax())
        red, green, blue = (int(part) for part in candidates[best])
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[best], axis=-1))
    return chosen


def _lab(rgb: np.ndarray) -> np.ndarray:
    """(n, 3), 0 to 255, to (n, 3) of which equal distances look equal."""
    return np.cbrt(_linear(rgb) @ _TO_EYE.T) @ _TO_LAB.T * [_LIGHTNESS, 1, 1]


def _linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB, 0 to 255, to light, 0 to 1."""
    part = rgb / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
