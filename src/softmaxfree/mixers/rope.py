"""Rotary position embedding on the token grid (Su et al., 2021), as RetNet-like vision models lay it over two axes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from softmaxfree.arguments import require

_BASE = 10_000.0


def require_rope(rope: object, head_dim: int, allowed: tuple[str, ...]) -> None:
    """Raises InputError unless `rope` is one of `allowed`, and heads are wide enough where it is not "none"."""
    require(isinstance(rope, str) and rope in allowed, "rope", rope, f"one of {', '.join(allowed)}")
    fits = rope == "none" or head_dim % 4 == 0
    require(fits, "rope", rope, f"none where the width of a head, {head_dim}, is no multiple of 4")


def rotate(x: Tensor, grid: list[int], parts: int = 1) -> Tensor:
    """Turns each pair of adjacent channels by an angle that grows with the token's place.

    On an image the first half of the channels tells the row, the second half the column. The angles of one axis are
    its index times `10000^-linspace(0, 1, pairs)`. The scalar product of two rotated tokens depends on the places only
    through their difference. Prefix tokens stay as they are.

    Args:
        x: `(B, H, N, parts * D)` in the dtype to compute in; `D` is a multiple of twice the number of axes.
        grid: sizes of the token grid, one or two; the last `prod(grid)` of the `N` tokens lie on it.
        parts: how many times `D` channels stand side by side, each turned in the same way.

    Returns:
        The turned tokens, in the shape of `x`.
    """
    angles = _angles(x, grid, x.shape[-1] // parts).repeat(1, parts)
    cos, sin = angles.cos(), angles.sin()
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


def _angles(x: Tensor, grid: list[int], dim: int) -> Tensor:
    """Returns the angle of each token and pair of `dim` channels, `(N, dim / 2)`."""
    pairs = dim // (2 * len(grid))
    frequencies = _BASE ** -torch.linspace(0, 1, pairs, device=x.device, dtype=x.dtype)
    axes = [torch.arange(size, device=x.device, dtype=x.dtype).unsqueeze(-1) * frequencies for size in grid]
    if len(grid) == 2:
        rows, columns = axes
        rows, columns = rows.unsqueeze(1).expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)
        angles = torch.cat([rows, columns], -1).flatten(0, 1)
    else:
        angles = axes[0]
    prefix = x.shape[-2] - math.prod(grid)
    return F.pad(angles, (0, 0, prefix, 0)) if prefix else angles
