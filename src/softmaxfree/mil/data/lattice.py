"""The lattice that the patches of a slide lie on: its step, from what a file says or from the coordinates."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from softmaxfree.errors import InputError

__all__ = ["require_cells", "step_of"]


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
    step = round(size * scale) - round(overlap * scale)
    return float(step) if step > 0 else None


def require_cells(coords: np.ndarray, step: float, how: str, slide: str, path: object) -> None:
    """Refuse a step by which patches fall together.

    Args:
        coords: (N, 2) pixels (x, y).
        step: of the lattice.
        how: where the step is from, in words.
        slide: whose they are, for the message.
        path: of their file.

    Raises:
        InputError: all patches lie in one cell, or those of different places share one on average.
    """
    if not math.isfinite(step) or step <= 0:
        raise InputError(f"slide {slide}: the step of the coordinates in {path} is {step:g}; it must be above 0")
    places = len(np.unique(coords, axis=0))
    cells = len(np.unique(np.round((coords - coords.min(0)) / step), axis=0))
    if places > 1 and (cells == 1 or 2 * cells <= places):
        raise InputError(
            f"slide {slide}: the {places} places of patches in {path} fall into {cells} cell{'s' * (cells > 1)} of a "
            f"lattice of step {step:g} ({how}); data.step gives another one, in pixels at level 0"
        )
