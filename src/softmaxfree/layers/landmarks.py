"""Landmarks: a few points that stand for all tokens of a head, sampled from a 1-D or 2-D token grid."""

import math
from typing import Any, Literal, cast, get_args

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_whole, require_whole_numbers
from softmaxfree.layers.padding import extents

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
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        head_dim: int,
        ratio: int,
        *,
        sampling: Sampling = "conv",
        max_grid: tuple[int, ...] | None = None,
        ndim: int = 2,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        samplings = get_args(Sampling)
        require(sampling in samplings, "landmark_sampling", sampling, f"one of {', '.join(samplings)}")
        require_whole("head_dim", head_dim, 1)
        require_whole("ratio", ratio, 1)
        require_whole("ndim", ndim, 1)
        require(ndim <= 2, "ndim", ndim, "1 for sequences or 2 for images")
        self.ratio = ratio
        self.ndim = ndim
        self.sampling: str = sampling
        self.set_max_grid(max_grid)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv: nn.Conv1d | nn.Conv2d | None = None
        self.norm: nn.Module | None = None
        self.act: nn.Module | None = None
        if sampling == "conv":
            conv = nn.Conv2d if ndim == 2 else nn.Conv1d
            self.conv = conv(head_dim, head_dim, ratio, stride=ratio, bias=False, **factory)
            self.norm = nn.LayerNorm(head_dim, **factory)
            self.act = nn.GELU()

    def set_max_grid(self, max_grid: tuple[int, ...] | None) -> None:
        """Changes the landmark budget."""
        if max_grid is not None:
            require_whole_numbers("landmark_grid", max_grid, self.ndim, 1)
        self.max_grid = None if max_grid is None else list(max_grid)

    def forward(self, tokens: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Samples the landmarks.

        Args:
            tokens: `(B, H, N, D)`, row-major on the grid.
            grid: sizes of the token grid, product `N`, each at least `ratio`.
            mask: `(B, *grid)` bool, True where a token is valid: each image's landmarks are those of its valid tokens
                alone, and stand where `valid` is True; the others are finite.

        Returns:
            `(B, H, M, D)`.
        """
        if self.sampling == "random" or self.sampling == "first":
            return self._subset(tokens, grid, mask)
        windows = self._windows(tokens, grid)  # (B, H, y, x, ratio^2, D)
        if self.conv is None or self.norm is None or self.act is None:
            return self._pool(windows.mean(-2), mask)
        # windows do not overlap, so the convolution is a matrix product, whose rounding does not depend on the batch
        weight = self.conv.weight.flatten(2).permute(2, 1, 0).flatten(0, 1)
        return self.act(self.norm(self._pool(windows.flatten(-2) @ weight, mask)))

    def valid(self, mask: Tensor) -> Tensor:
        """Returns which landmarks are valid, `(B, M)`, for tokens with `mask (B, *grid)`."""
        windows = self._full(mask)
        if self.max_grid is not None:
            windows = windows[:, : _at_most(windows.shape[1], self.max_grid[0])]
            if windows.ndim == 3:
                windows = windows[:, :, : _at_most(windows.shape[2], self.max_grid[1])]
        windows = windows.flatten(1)
        if self.sampling == "random" or self.sampling == "first":
            return torch.arange(windows.shape[1], device=mask.device) < windows.sum(1, keepdim=True)
        return windows

    def _full(self, mask: Tensor) -> Tensor:
        """Returns which windows are full."""
        mask = mask[:, self.ratio - 1 :: self.ratio]
        return mask[:, :, self.ratio - 1 :: self.ratio] if mask.ndim == 3 else mask

    def _windows(self, tokens: Tensor, grid: list[int]) -> Tensor:
        """Cuts `(B, H, N, D)` into full windows; tokens that fill none are left out, as released."""
        r = self.ratio
        image = tokens.unflatten(2, grid)
        if len(grid) == 1:
            return image.unfold(2, r, r).transpose(-1, -2)
        return image.unfold(2, r, r).unfold(3, r, r).permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)

    def _pool(self, landmarks: Tensor, mask: Tensor | None) -> Tensor:
        """Averages `(B, H, y, x, D)` (or `(B, H, x, D)`) down to the budget; returns `(B, H, M, D)`."""
        if self.max_grid is None:
            return landmarks.flatten(2, -2)
        sizes = None if mask is None else extents(self._full(mask))
        if torch.compiler.is_compiling():
            return _average_all(landmarks, self.max_grid, sizes)
        if landmarks.shape[-2] > self.max_grid[-1]:
            landmarks = _average(landmarks, self.max_grid[-1], None if sizes is None else sizes[-1])
        if len(self.max_grid) == 2 and landmarks.shape[-3] > self.max_grid[0]:
            rows = _average(landmarks.transpose(-2, -3), self.max_grid[0], None if sizes is None else sizes[0])
            landmarks = rows.transpose(-2, -3)
        return landmarks.flatten(2, -2)

    def _subset(self, tokens: Tensor, grid: list[int], mask: Tensor | None) -> Tensor:
        count = 1
        for axis, size in enumerate(grid):
            cells = size // self.ratio
            count *= cells if self.max_grid is None else _at_most(cells, self.max_grid[axis])
        if mask is not None:
            # a valid token's number in the image alone is how many come before it
            places = self._order(mask.flatten(1).cumsum(1) - 1).masked_fill(~mask.flatten(1), torch.inf)
            places = torch.argsort(places)[:, None, :count, None]
            return tokens.gather(2, places.expand(-1, tokens.shape[1], -1, tokens.shape[3]))
        places = torch.arange(tokens.shape[2], device=tokens.device)
        if self.sampling == "random":
            places = torch.argsort(self._order(places))
        return tokens[:, :, places[:count]]

    def _order(self, places: Tensor) -> Tensor:
        """Returns numbers by which to sort tokens, of which the first are taken."""
        if self.sampling == "first":
            return places.double()
        # the same places for every image, call and device: multiples of a golden-ratio fraction
        return places.double().mul(0.6180339887498949).frac()


def _at_most(size: int, limit: int) -> int:
    """Returns the smaller number, without a choice where an exported program is to decide it at each call."""
    if torch.compiler.is_compiling():
        return cast(int, torch.sym_min(size, limit))
    return min(size, limit)


def _average_all(landmarks: Tensor, limits: list[int], sizes: list[Tensor] | None) -> Tensor:
    """Averages all axes at once, `(B, H, y, x, D)` to `(B, H, M, D)`: one program for sizes on both sides of a limit.

    Below the limits the matrix is that of identity.
    """
    grid = landmarks.shape[2:-1]
    targets = [_at_most(size, limit) for size, limit in zip(grid, limits, strict=True)]
    cell = torch.arange(math.prod(targets), device=landmarks.device).unsqueeze(1)
    matrix = None
    for axis in reversed(range(len(grid))):
        given = None if sizes is None else sizes[axis]
        target = torch.full((), targets[axis], device=landmarks.device)  # ONNX divides by tensors alone
        weights = _pooling_weights(cell - cell // target * target, grid[axis], target, landmarks, given)
        matrix = weights if matrix is None else (weights.unsqueeze(-1) * matrix.unsqueeze(-2)).flatten(-2)
        cell = cell // target
    assert matrix is not None
    return (matrix if sizes is None else matrix.unsqueeze(1)) @ landmarks.flatten(2, -2)


def _average(landmarks: Tensor, target: int, sizes: Tensor | None) -> Tensor:
    """Averages the axis before the last of `(B, ..., size, D)` down to `target`, in each image its first `sizes`."""
    matrix = pooling_matrix(landmarks.shape[-2], target, landmarks, sizes)
    if sizes is not None:
        matrix = matrix.view([matrix.shape[0]] + [1] * (landmarks.ndim - 3) + list(matrix.shape[1:]))
    return matrix @ landmarks


def pooling_matrix(size: int, target: int, like: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Returns the matrix of adaptive average pooling from `size` to `target` cells.

    Unlike adaptive pooling it is exact when exported with a dynamic size.

    Args:
        size: number of cells.
        target: number of cells wanted.
        like: gives dtype and device.
        sizes: `(B,)`, in each image the number of cells to pool, at most `size`; no more than these are made of them.

    Returns:
        `(target, size)`, or `(B, target, size)` with `sizes`, each arbitrary in the rows beyond what is made; rows sum
        to 1.
    """
    out = torch.arange(target, device=like.device).unsqueeze(1)
    return _pooling_weights(out, size, torch.full((), target, device=like.device), like, sizes)


def _pooling_weights(out: Tensor, size: int, target: Tensor, like: Tensor, sizes: Tensor | None) -> Tensor:
    """Returns the rows `out (M, 1)` of the pooling matrix to `target ()` cells."""
    place = torch.arange(size, device=like.device)
    if sizes is None:
        begin = out * size // target
        end = ((out + 1) * size + target - 1) // target
    else:
        cells = sizes[:, None, None].clamp(min=1)  # an image without a cell has arbitrary rows alone
        wanted = cells.clamp(max=target)
        begin = out * cells // wanted
        end = ((out + 1) * cells + wanted - 1) // wanted
    inside = (place >= begin) & (place < end)
    return inside.to(like.dtype) / (end - begin).to(like.dtype)
