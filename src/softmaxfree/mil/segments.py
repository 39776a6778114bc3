"""Landmarks as means of segments of a sequence, of equal length up to one token, for each bag on its own."""

import torch
from torch import Tensor

from softmaxfree.ops.precision import widen

__all__ = ["segment_means", "segment_numbers"]


def segment_numbers(lengths: Tensor, tokens: int, segments: int) -> tuple[Tensor, Tensor]:
    """Cuts sequences into segments.

    Args:
        lengths: `(B,)` int64, valid tokens of each, which come first.
        tokens: `N`, with padding.
        segments: `M`, how many there are to be; fewer where there are fewer tokens.

    Returns:
        Number of the segment of each token `(B, N)` int64, `M` in the padding; and how many segments there are, `(B,)`.
    """
    made = lengths.clamp(max=segments)
    place = torch.arange(tokens, device=lengths.device)
    numbers = place * made[:, None] // lengths[:, None].clamp(min=1)
    return numbers.masked_fill(place >= lengths[:, None], segments), made


def segment_means(x: Tensor, numbers: Tensor, segments: int) -> Tensor:
    """Averages tokens.

    Args:
        x: `(B, H, N, D)`.
        numbers: of the segment of each token, see `segment_numbers`.
        segments: `M`.

    Returns:
        `(B, H, M, D)` in the dtype that ops compute in; 0 for segments that are not there.
    """
    batch, heads, _, width = x.shape
    flat = (numbers + (segments + 1) * torch.arange(batch, device=x.device)[:, None]).flatten()
    rows = widen(x).transpose(1, 2).flatten(2).flatten(0, 1)  # (B N, H D)
    sums = rows.new_zeros(batch * (segments + 1), heads * width).index_add(0, flat, rows)
    counts = rows.new_zeros(len(sums)).index_add(0, flat, rows.new_ones(len(flat)))
    means = sums / counts.clamp(min=1)[:, None]
    return means.view(batch, segments + 1, heads, width)[:, :segments].transpose(1, 2)
