"""What a low rank misses of tokens that lie near each other: their exact weights in place of the decomposed ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST = 100.0  # of an exponent to base 2: beyond is no number in float32


def corrections(
    logits_of: Tensor,
    keys: Tensor,
    kernel: Tensor,
    through: Tensor,
    v: Tensor,
    there: Tensor,
    grid: list[int],
    reach: int,
) -> Tensor:
    """Returns what exact weights of near keys add to the sums of a decomposition `kernel @ through`.

    Queries are taken in windows of `2 reach + 2` tokens a side, in each with the keys inside and `reach` around it.

    Args:
        logits_of: queries and, last, what is subtracted from their logits, `(B, H, N, D + 1)`, row-major on the grid.
        keys: `(B, H, N, D)`, of which inner products with queries are logits to base 2.
        kernel: of queries and landmarks, `(B, H, N, M)`.
        through: of landmarks and keys, `(B, H, M, N)`; 0 where a key is not to be counted.
        v: values `(B, H, N, E)`.
        there: which keys are counted, `(B, H, N)`.
        grid: rows and columns.
        reach: tokens around a window.

    Returns:
        `(B, H, N, E + 2)`: sums of values, of weights, and of exact weights alone.
    """
    side, counts = 2 * reach + 2, keys.shape[-1]
    own = _windows(torch.cat([logits_of, kernel], -1), grid, side, 0)
    near = _windows(torch.cat([keys, through.mT, v, there.unsqueeze(-1).to(v.dtype)], -1), grid, side, reach)
    q, less, rows = own[..., :counts], own[..., counts : counts + 1], own[..., counts + 1 :]
    k, columns, values, counted = near.split([counts, rows.shape[-1], v.shape[-1], 1], -1)
    exact = (q @ k.mT - less).clamp_max(_MOST).exp2() * counted.mT
    change = exact - rows @ columns.mT
    out = torch.cat([change @ values, change.sum(-1, keepdim=True), exact.sum(-1, keepdim=True)], -1)
    return _tokens(out, grid, side)


def _windows(x: Tensor, grid: list[int], side: int, around: int) -> Tensor:
    """Cuts `(B, H, N, F)` into windows with what is around, `(B, H, W, (side + 2 around)^2, F)`, 0 outside."""
    rows, columns = grid
    down, across = _counts(grid, side)
    after = (around + across * side - columns, around + down * side - rows)
    image = F.pad(x.unflatten(2, grid), (0, 0, around, after[0], around, after[1]))
    whole = side + 2 * around
    cut = image.unfold(2, whole, side).unfold(3, whole, side).permute(0, 1, 2, 3, 5, 6, 4)
    return cut.reshape(*x.shape[:2], down * across, whole * whole, x.shape[3])


def _tokens(x: Tensor, grid: list[int], side: int) -> Tensor:
    """Returns windows `(B, H, W, side^2, F)` as tokens `(B, H, N, F)`."""
    _, across = _counts(grid, side)
    row, column = (torch.arange(size, device=x.device) for size in grid)
    # by places, as a slice would pin the sizes of an exported program
    window = (row // side).unsqueeze(1) * across + column // side
    place = (row % side).unsqueeze(1) * side + column % side
    return x.flatten(2, 3).index_select(2, (window * side * side + place).flatten())


def _counts(grid: list[int], side: int) -> tuple[int, int]:
    """How many windows there are, an empty one with them: of one alone an exported program would take no more."""
    rows, columns = grid
    extra = side if torch.compiler.is_exporting() else 0
    return (rows + side - 1 + extra) // side, (columns + side - 1 + extra) // side
