"""Landmarks: a few points that stand for all tokens of a head, sampled from a 1-D or 2-D token grid."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.types import Device

Sampling = Literal["conv", "mean", "random", "first"]


@register_notrace_module
class Landmarks(nn.Module):
    """Samples `M` landmarks from the tokens of each head.

    Args:
        head_dim: width `D` of a head.
        ratio: side of the window of tokens that one landmark stands for.
        sampling: `"conv"`: a convolution of stride `ratio` shared by the heads, then LayerNorm and GELU (released
            code); `"mean"`: the mean of each window (paper); `"random"`: tokens at fixed pseudo-random places;
            `"first"`: the first tokens.
        max_grid: the landmark budget, one number for each axis of the grid: where there would be more landmarks, they
            are averaged down to it (SOFT fixes `M`; the released code lets it grow with the image). None: no limit.
        ndim: 1 for sequences, 2 for images.
        device: of the weights.
        dtype: of the weights.

    Raises:
        ValueError: for a sampling that does not exist.
    """

    def __init__(
        self,
        head_dim: int,
        ratio: int,
        *,
        sampling: Sampling = "conv",
        max_grid: tuple[int, ...] | None = (16, 16),
        ndim: int = 2,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if sampling not in get_args(Sampling):
            raise ValueError(f"landmark_sampling must be one of {', '.join(get_args(Sampling))}, got {sampling!r}")
        if max_grid is not None and (len(max_grid) != ndim or min(max_grid) < 1):
            raise ValueError(f"landmark_grid must be {ndim} numbers of 1 or more, or None, got {max_grid!r}")
        self.ratio = ratio
        self.sampling: str = sampling
        self.max_grid = None if max_grid is None else list(max_grid)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv: nn.Module | None = None
        self.norm: nn.Module | None = None
        self.act: nn.Module | None = None
        if sampling == "conv":
            conv = nn.Conv2d if ndim == 2 else nn.Conv1d
            self.conv = conv(head_dim, head_dim, ratio, stride=ratio, bias=False, **factory)
            self.norm = nn.LayerNorm(head_dim, **factory)
            self.act = nn.GELU()

    def forward(self, tokens: Tensor, grid: list[int]) -> Tensor:
        """Samples the landmarks.

        Args:
            tokens: `(B, H, N, D)`, row-major on the grid.
            grid: sizes of the token grid, product `N`, each at least `ratio`.

        Returns:
            `(B, H, M, D)`.
        """
        if self.sampling == "random" or self.sampling == "first":
            return self._subset(tokens, grid)
        image = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, grid)  # (B H, D, Y, X); all heads share the weights
        if self.conv is not None:
            image = self.conv(image)
        elif len(grid) == 1:
            image = F.avg_pool1d(image, self.ratio)
        else:
            image = F.avg_pool2d(image, self.ratio)
        landmarks = self._pool(image).flatten(2).transpose(1, 2).unflatten(0, tokens.shape[:2])
        if self.norm is None or self.act is None:
            return landmarks
        return self.act(self.norm(landmarks))

    def _pool(self, image: Tensor) -> Tensor:
        """Averages `(B H, D, y, x)` (or `(B H, D, x)`) down to the budget."""
        if self.max_grid is None:
            return image
        if image.shape[-1] > self.max_grid[-1]:
            image = image @ pooling_matrix(image.shape[-1], self.max_grid[-1], image).mT
        if len(self.max_grid) == 2 and image.shape[-2] > self.max_grid[0]:
            image = pooling_matrix(image.shape[-2], self.max_grid[0], image) @ image
        return image

    def _subset(self, tokens: Tensor, grid: list[int]) -> Tensor:
        count = 1
        for axis, size in enumerate(grid):
            cells = size // self.ratio
            count *= cells if self.max_grid is None else min(cells, self.max_grid[axis])
        places = torch.arange(tokens.shape[2], device=tokens.device)
        if self.sampling == "random":
            # the same places for every image, call and device: multiples of a golden-ratio fraction, sorted
            places = torch.argsort(places.double().mul(0.6180339887498949).frac(), stable=True)
        return tokens[:, :, places[:count]]


def pooling_matrix(size: int, target: int, like: Tensor) -> Tensor:
    """Returns the matrix of adaptive average pooling from `size` to `target` cells.

    Unlike adaptive pooling it is exact when exported with a dynamic size.

    Args:
        size: number of cells.
        target: number of cells wanted.
        like: gives dtype and device.

    Returns:
        `(target, size)`; rows sum to 1.
    """
    out = torch.arange(target, device=like.device).unsqueeze(1)
    place = torch.arange(size, device=like.device)
    begin = out * size // target
    end = ((out + 1) * size + target - 1) // target
    inside = (place >= begin) & (place < end)
    return inside.to(like.dtype) / (end - begin).to(like.dtype)
