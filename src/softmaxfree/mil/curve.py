"""Where patches lie: the lattice of their coordinates, and their order along a Hilbert curve."""

from typing import NamedTuple

import torch
from torch import Tensor

from softmaxfree.arguments import require
from softmaxfree.errors import InputError

__all__ = ["Lattice", "curve_order", "hilbert", "infer_step", "lattice"]

_FREQUENT = 0.1  # of how often the most frequent gap occurs
_JITTER = 0.02  # of the step, by which rounding to whole pixels may change it
_SAME = 1e-6  # of the extent of half of the patches: places nearer than that are one
MOST_CELLS = 2**31  # cells along an axis: two of them are the bits of a place on the curve


class Lattice(NamedTuple):
    """Cells `(N, 2)` int64 of the patches, the step in pixels, and how many patches share the cell of another."""

    cells: Tensor
    step: float
    collisions: int


def lattice(coords: Tensor, step: float | None = None, name: str = "the bag") -> Lattice:
    """Finds the cells of patches.

    Coordinates off the lattice, such as those of CLAM, where each contour has its own origin, are rounded to it.

    Args:
        coords: `(N, 2)` float64, pixels `(x, y)`.
        step: distance of neighbours, pixels; None infers it.
        name: of the bag, for the error.

    Returns:
        The lattice; its least column and row are 0.

    Raises:
        InputError: the step is not above 0, all of several patches fall into one cell, or lie too far apart.
    """
    inferred = step is None
    step = infer_step(coords) if step is None else float(step)
    require(0 < step < float("inf"), "step", step, "pixels between neighbours, above 0")
    told = f"at step {step:g} ({'inferred' if inferred else 'given'})"
    places = (coords - coords.amin(0)) / step
    if not bool((places < MOST_CELLS - 1).all()):
        raise InputError(f"coords: the patches of {name} lie further apart than {MOST_CELLS} cells {told}")
    # half a cell off is one cell further for all: to the nearest even number, as `round` does it, they would collide
    cells = (places + 0.5 + _JITTER).floor().long()
    different = len((cells[:, 0] * MOST_CELLS + cells[:, 1]).unique())  # unique rows take ten times as long
    if different == 1 and len(cells) > 1:
        raise InputError(f"coords: all {len(cells)} patches of {name} fall into one cell {told}")
    return Lattice(cells, step, len(cells) - different)


def infer_step(coords: Tensor) -> float:
    """Infers the distance of neighbouring patches.

    It is the smallest of the frequent gaps between patches that follow each other in a row or a column. Where no two
    patches share either, gaps between columns and between rows take their place.

    Args:
        coords: `(N, 2)` float64, pixels `(x, y)`.

    Returns:
        The step, pixels; 1 for a single place.
    """
    same = _SAME * float((coords.quantile(0.75, 0) - coords.quantile(0.25, 0)).max())
    coords = torch.stack([_without_noise(own, same) for own in coords.unbind(1)], 1)
    gaps = torch.cat([_gaps(coords[:, axis], coords[:, 1 - axis]) for axis in (0, 1)])
    if not len(gaps):
        gaps = torch.cat([coords[:, axis].unique().diff() for axis in (0, 1)])
    if not len(gaps):
        return 1.0
    values, counts = gaps.unique(return_counts=True)
    least = values[counts >= _FREQUENT * counts.max()][0]
    return float(gaps[(gaps - least).abs() <= _JITTER * least].mean())


def _without_noise(place: Tensor, same: float) -> Tensor:
    """Returns places `(N,)`, of which those that rounding alone tells apart are the first of them."""
    values, numbers = place.unique(return_inverse=True)
    first = torch.cat((values.new_ones(1, dtype=torch.bool), values.diff() > same))
    return values[first][(first.cumsum(0) - 1)[numbers]]


def _gaps(place: Tensor, line: Tensor) -> Tensor:
    """Returns the gaps above 0 between places that follow each other on a line."""
    order = place.argsort(stable=True)
    order = order[line[order].argsort(stable=True)]
    gaps = place[order].diff()
    return gaps[(line[order].diff() == 0) & (gaps > 0)]


def curve_order(cells: Tensor, coords: Tensor, tie: Tensor) -> Tensor:
    """Sorts patches along a Hilbert curve.

    Args:
        cells: `(N, 2)` int64.
        coords: `(N, 2)`, pixels; patches of one cell are sorted by `y`, then `x`.
        tie: `(N,)`; patches of one place are sorted by it.

    Returns:
        `(N,)`: the numbers of the patches in order, which does not depend on the order that they come in.
    """
    order = tie.argsort(stable=True)
    for key in (coords[:, 0], coords[:, 1], hilbert(cells)):
        order = order[key[order].argsort(stable=True)]
    return order


def hilbert(cells: Tensor) -> Tensor:
    """Returns the place of cells on a Hilbert curve, along which neighbours in the order are neighbours on the grid.

    Args:
        cells: `(N, 2)` int64, column and row, 0 or more and below 2^31.

    Returns:
        `(N,)` int64.
    """
    x, y = cells.unbind(1)
    # an even number of bits: two more turn the curve once around, so that the order does not depend on the largest cell
    bits = int(cells.max()).bit_length() if len(cells) else 0
    bits += bits % 2
    ones, key = (1 << bits) - 1, torch.zeros_like(x)
    for bit in reversed(range(bits)):
        right, low = (x >> bit) & 1, (y >> bit) & 1
        key = (key << 2) | ((3 * right) ^ low)
        flip = (low == 0) & (right == 1)
        x, y = torch.where(flip, x ^ ones, x), torch.where(flip, y ^ ones, y)
        x, y = torch.where(low == 0, y, x), torch.where(low == 0, x, y)
    return key
