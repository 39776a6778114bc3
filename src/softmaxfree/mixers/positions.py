"""Learned positions that some mixers add to their keys."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require_whole_numbers
from softmaxfree.layers.embed import PositionTable


def key_positions(dim: int, grid: Sequence[int] | None, factory: dict[str, Any]) -> PositionTable | None:
    """Returns a table of zeros on a grid, as the released codes start from; None for no grid.

    Args:
        dim: channels `C`.
        grid: rows and columns of the table.
        factory: device and dtype.

    Returns:
        The table.

    Raises:
        InputError: the grid is not two whole numbers.
    """
    if grid is None:
        return None
    require_whole_numbers("position_grid", grid, 2, 1)
    table = PositionTable(dim, (grid[0], grid[1]), **factory)
    nn.init.zeros_(table.table)
    return table


def add_positions(k: Tensor, table: PositionTable | None, grid: list[int], mask: Tensor | None) -> Tensor:
    """Adds the positions, resampled to the grid or to each image's valid part of it; prefix tokens have none.

    Args:
        k: keys `(B, H, N, D)`.
        table: of `key_positions`.
        grid: sizes of the token grid; a sequence is an image of one row.
        mask: `(B, *grid)` bool, True where a token is valid.

    Returns:
        `(B, H, N, D)`; arbitrary in the padding.
    """
    if table is None:
        return k
    rows, columns = grid if len(grid) == 2 else (1, grid[0])
    places = table(rows, columns, mask if mask is None or mask.ndim == 3 else mask.unsqueeze(1))
    places = places.unflatten(-1, (k.shape[1], -1)).transpose(1, 2).to(k.dtype)
    return k + F.pad(places, (0, 0, k.shape[2] - math.prod(grid), 0))
