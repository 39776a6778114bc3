"""Means of windows of tokens, for the mixers that let a few of them stand for all."""

from collections.abc import Sequence

from softmaxfree.arguments import require
from softmaxfree.layers.landmarks import Landmarks


def window_means(ratio: int, landmark_grid: Sequence[int]) -> Landmarks:
    """Returns what makes means of windows on a grid with as many axes as `landmark_grid`.

    Args:
        ratio: side of the windows.
        landmark_grid: how many means there are at most along each axis; more are averaged down to it.

    Returns:
        A layer without weights, `(B, H, N, D)` to `(B, H, M, D)`.

    Raises:
        InputError: for an argument out of range.
    """
    numbers = isinstance(landmark_grid, Sequence) and len(landmark_grid) in (1, 2)
    require(numbers, "landmark_grid", landmark_grid, "one number for a sequence, or two for an image")
    return Landmarks(1, ratio, sampling="mean", max_grid=tuple(landmark_grid), ndim=len(landmark_grid))
