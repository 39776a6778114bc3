"""Linformer: softmax attention to a few weighted sums of all keys and values (Wang et al., 2020)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_whole, require_whole_numbers
from softmaxfree.errors import InputError
from softmaxfree.mixers.mixer import AbstractAttention, valid_tokens, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.softmax import softmax_attention
from softmaxfree.mixers.windows import window_means


@register
class LinformerAttention(AbstractAttention):
    """`softmax(q (E^T k)^T / sqrt(D)) F^T v`, eq. 7 of the paper, with `E` and `F` of `K` columns.

    By default both are means of windows, one of the paper's choices, at most `landmark_grid` of them: any grid will do,
    and prefix tokens stay keys of their own. With `rank` they are weights, one row for each place of a grid, shared by
    the heads, as released; a smaller grid takes the rows of the same places.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        ratio: side of the windows.
        landmark_grid: most windows along each axis of the grid, two numbers, or one for sequences; more are averaged.
        rank: number `K` of learned weighted sums, in place of means; 0 for means.
        max_grid: with `rank`, the largest grid, one or two numbers.
        device: of the weights.
        dtype: of the weights.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "linformer"
    source = "Linformer, 2020"
    approximates = "softmax"
    row_sum: float | None = 1.0

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        ratio: int = 1,
        landmark_grid: Sequence[int] = (16, 16),
        rank: int = 0,
        max_grid: Sequence[int] = (16, 16),
        device: Device = None,
        dtype: torch.dtype | None = None,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, device=device, dtype=dtype, **common)
        require_whole("rank", rank, 0)
        require(isinstance(max_grid, Sequence), "max_grid", max_grid, "a sequence of numbers")
        require_whole_numbers("max_grid", max_grid, 1 if len(max_grid) == 1 else 2, 1)
        self.landmarks = window_means(ratio, landmark_grid)
        if rank and (ratio != 1 or tuple(landmark_grid) != (16, 16)):
            raise InputError(
                "ratio and landmark_grid must be left out with rank: they are of means, not of learned sums"
            )
        self.ratio, self.landmark_grid, self.rank, self.max_grid = ratio, tuple(landmark_grid), rank, tuple(max_grid)
        self.ndims = (len(landmark_grid),)
        if rank:
            self.ndims, self.prefix, self.row_sum = (len(max_grid),), False, None
            rows = math.prod(max_grid)
            self.proj_k = nn.Parameter(torch.empty(rows, rank, device=device, dtype=dtype))
            self.proj_v = nn.Parameter(torch.empty(rows, rank, device=device, dtype=dtype))
            for weights in (self.proj_k, self.proj_v):
                nn.init.uniform_(weights, -(rank**-0.5), rank**-0.5)

    @property
    def min_grid(self) -> int:
        """Least number of tokens along each axis: one window."""
        return 1 if self.rank else self.ratio

    def check(self, x: Tensor, grid: list[int], mask: Tensor | None) -> None:
        """Raises InputError unless the mixer can take tokens `(B, N, C)` on such a grid, with such a mask."""
        super().check(x, grid, mask)
        if not self.rank or torch.compiler.is_exporting():
            return
        if any(size > most for size, most in zip(grid, self.max_grid, strict=True)):
            raise InputError(f"grid of linformer must be at most {list(self.max_grid)}, got {list(grid)}")

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        if self.rank:
            if mask is not None:
                k, v = zero_tokens(k, mask), zero_tokens(v, mask)
            return softmax_attention(q, self._sums(self.proj_k, k, grid), self._sums(self.proj_v, v, grid))
        k, v = self._means(k, grid, mask), self._means(v, grid, mask)
        valid = None if mask is None else valid_tokens(self.landmarks.valid(mask), k.shape[2])
        return softmax_attention(q, k, v, valid)

    def _means(self, x: Tensor, grid: list[int], mask: Tensor | None) -> Tensor:
        """Returns the prefix tokens and the means of windows `(B, H, M, D)` of tokens `(B, H, N, D)`."""
        prefix = x.shape[2] - math.prod(grid)
        return torch.cat((x[:, :, :prefix], self.landmarks(x[:, :, prefix:], grid, mask).to(x.dtype)), 2)

    def _sums(self, weights: Tensor, x: Tensor, grid: list[int]) -> Tensor:
        """Returns the weighted sums `(B, H, K, D)` of tokens `(B, H, N, D)`, each with the weights of its place."""
        places = torch.arange(grid[-1], device=x.device)
        if len(grid) == 2:
            places = (torch.arange(grid[0], device=x.device).unsqueeze(1) * self.max_grid[1] + places).flatten()
        return weights[places].mT.to(x.dtype) @ x
