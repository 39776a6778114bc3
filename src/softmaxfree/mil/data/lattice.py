"""The lattice that the patches of a slide lie on: its step, from what a file says or from the coordinates."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from softmaxfree.errors import InputError
from softmaxfree.mil.curve import MOST_CELLS

__all__ = ["patch_size_of", "require_cells", "slide_size_of", "step_of"]


def step_of(attributes: Mapping[str, Any]) -> float | None:
    """Return the distance of neighbours at level 0 by TRIDENT's attributes; None where these do not tell.

    CLAM stores no step, and its patches may overlap: there it follows from the coordinates.

    Args:
        attributes: of the coordinates. `patch_size` and `overlap` are pixels at the target magnification.

    Returns:
        Pixels at level 0.
    """
    keys = ("patch_size", "level0_magnification", "target_magnification", "overlap")
    try:
        size, level0, target, overlap = (float(attributes[key]) for key in keys)
    except (KeyError, TypeError, ValueError):  # missing, or the text "None"
        return None
    scale = level0 / target if target else 0.0
    if not all(math.isfinite(value) for value in (size * scale, overlap * scale)):
        return None
    step = round(size * scale) - round(overlap * scale)
    return float(step) if step > 0 else None


def patch_size_of(attributes: Mapping[str, Any]) -> float | None:
    """Return the side of a patch at level 0 by the attributes of TRIDENT or CLAM; None where these do not tell.

    Args:
        attributes: of the coordinates. CLAM's `patch_size` is in pixels of the level that is `downsample` smaller.

    Returns:
        Pixels at level 0.
    """
    told = _pair(attributes.get("patch_size_level0"))
    if told is None and "downsample" in attributes:
        size, scale = _pair(attributes.get("patch_size")), _pair(attributes["downsample"])
        told = None if size is None or scale is None else (size[0] * scale[0], size[1] * scale[1])
    return None if told is None else told[0]


def slide_size_of(attributes: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return width and height of a slide at level 0 by the attributes of TRIDENT or CLAM; None where these do not tell.

    Args:
        attributes: of the coordinates. CLAM's `level_dim` is the size of the level that is `downsample` smaller.

    Returns:
        Pixels at level 0.
    """
    width, height = _pair(attributes.get("level0_width")), _pair(attributes.get("level0_height"))
    if width is not None and height is not None:
        return width[0], height[0]
    size, scale = _pair(attributes.get("level_dim")), _pair(attributes.get("downsample"))
    return None if size is None or scale is None else (size[0] * scale[0], size[1] * scale[1])


def _pair(given: Any) -> tuple[float, float] | None:
    """One or two numbers above 0, as two; None for what is missing, or the text "None"."""
    try:
        values = [float(value) for value in np.atleast_1d(given)]
    except (TypeError, ValueError):
        return None
    if not values or not all(0 < value < math.inf for value in values):
        return None
    return values[0], values[-1]


def require_cells(coords: np.ndarray, step: float, how: str, slide: str, path: object) -> None:
    """Refuse a step by which patches fall together.

    Args:
        coords: (N, 2) pixels (x, y).
        step: of the lattice.
        how: where the step is from, in words.
        slide: whose they are, for the message.
        path: of their file.

    Raises:
        InputError: all patches lie at one place or in one cell, or those of different places share one on average.
    """
    if not math.isfinite(step) or step <= 0:
        raise InputError(f"slide {slide}: the step of the coordinates in {path} is {step:g}; it must be above 0")
    places = len(np.unique(coords, axis=0))
    if places == 1 < len(coords):
        raise InputError(f"slide {slide}: the {len(coords)} patches in {path} all lie at one place")
    apart = float(np.ptp(coords, axis=0).max()) / step if len(coords) else 0.0
    if apart >= MOST_CELLS:
        raise InputError(f"slide {slide}: the patches in {path} lie {apart:.3g} steps of {step:g} ({how}) apart")
    cells = len(np.unique(np.round((coords - coords.min(0)) / step), axis=0))
    if places > 1 and (cells == 1 or 2 * cells <= places):
        raise InputError(
            f"slide {slide}: the {places} places of patches in {path} fall into {cells} cell{'s' * (cells > 1)} of a "
            f"lattice of step {step:g} ({how}); data.step gives another one, in pixels at level 0"
        )
