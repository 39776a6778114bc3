"""The Gaussian kernel product over tiles that fit in a CPU's cache; runs on any device (README.md, "Tiles").

Of `x` and `y`, the one with more points is the long side, walked in tiles of `T` points; the other is the short side
of `S` points, held whole. `G` images are taken at once where a tile has room for them.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from softmaxfree.ops.precision import compute_dtype

# of a tile's kernel matrix, for each thread and at most: in cache, and still few tiles; or what keeps a GPU busy
_CPU_TILE_BYTES, _MAX_CPU_TILE_BYTES = 1 << 20, 1 << 23
_GPU_TILE_BYTES = 1 << 26
# points below which a matrix product loses its speed, whatever the cache
_MIN_POINTS = 64
_LOG2_E = 1 / math.log(2)


def forward(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Returns `K b`, `(B, H, N, E)`."""
    x_is_long = x.shape[-2] >= y.shape[-2]
    tiles = _Tiles(x, y) if x_is_long else _Tiles(y, x)
    out = tiles.result((*x.shape[:-1], b.shape[-1]), out_dtype, summed=not x_is_long)
    for tile in tiles.walk():
        tiles.multiply(tile, b, out, onto_long=x_is_long)
    return out.to(out_dtype)


def backward(x: Tensor, y: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y` and `b`; computes the kernel again."""
    return _gradients(x, y, [(grad, b)], grad, b, onto_x=False)


def backward_pair(x: Tensor, y: Tensor, g: Tensor, w: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of `sum(g * K w) + sum(v * K c)` for `x`, `y` and `v`; computes the kernel once."""
    return _gradients(x, y, [(g, w), (v, c)], c, v, onto_x=True)


def _gradients(
    x: Tensor, y: Tensor, pairs: list[tuple[Tensor, Tensor]], factor: Tensor, like: Tensor, onto_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of the sum over `pairs (p, q)` of `sum(p * K q)` for `x` and `y`, and `K` times a factor.

    That product has shape and dtype of `like`: `K factor` if it is onto `x`, otherwise `K^T factor`.
    """
    x_is_long = x.shape[-2] >= y.shape[-2]
    tiles = _Tiles(x, y) if x_is_long else _Tiles(y, x)
    onto_long = onto_x == x_is_long
    product = tiles.result(like.shape, like.dtype, summed=not onto_long)
    grads = tiles.result(tiles.long.shape, x.dtype, summed=False), tiles.result(tiles.short.shape, x.dtype, summed=True)
    for tile in tiles.walk():
        tiles.multiply(tile, factor, product, onto_long)
        tiles.differentiate(tile, pairs if x_is_long else [pair[::-1] for pair in pairs], *grads)
    grad_x, grad_y = grads if x_is_long else grads[::-1]
    return grad_x.to(x.dtype), grad_y.to(y.dtype), product.to(like.dtype)


def not_supported_reasons(x: Tensor, y: Tensor, b: Tensor) -> list[str]:
    """Returns why these tensors cannot be walked in tiles; empty when they can."""
    return [] if x.ndim == 4 else [f"tiles need (B, H, N, D), got {x.ndim} dimensions"]


class _Tile(NamedTuple):
    images: slice
    tokens: slice
    long: Tensor  # (G H, T, D)
    short: Tensor  # (G H, S, D)
    kernel: Tensor  # (G H, S, T)


class _Tiles:
    """The kernel matrix of a long and a short set of points, one tile at a time, in memory used again."""

    def __init__(self, long: Tensor, short: Tensor) -> None:
        self.long, self.short = long, short
        self._dtype = compute_dtype(long.dtype)
        self._memory: dict[str, Tensor] = {}
        _, heads, points, _ = long.shape
        tile_bytes = _GPU_TILE_BYTES
        if long.device.type == "cpu":
            tile_bytes = min(_CPU_TILE_BYTES * torch.get_num_threads(), _MAX_CPU_TILE_BYTES)
        room = max(_MIN_POINTS, tile_bytes // max(1, heads * short.shape[-2] * self._dtype.itemsize))
        # neither depends on the batch, so an image is cut in the same way whatever its neighbours
        self._points = math.ceil(points / max(1, math.ceil(points / room)))
        self._group = max(1, room // max(1, points))

    def walk(self) -> Iterator[_Tile]:
        """Yields the tiles; what a tile holds is overwritten by the next."""
        batch, _, tokens, _ = self.long.shape
        for i in range(0, batch, self._group):
            images = slice(i, i + self._group)
            short = self.fold("short", self.short[images])
            short_part = self._exponent_part(short).unsqueeze(-1)
            for j in range(0, tokens, self._points):
                span = slice(j, j + self._points)
                long = self.fold("long", self.long[images, :, span])
                long_part = self._exponent_part(long).unsqueeze(-2)
                kernel = self.scratch("kernel", (*short.shape[:-1], long.shape[-2]))
                torch.baddbmm(short_part, short, long.mT, beta=_LOG2_E, alpha=_LOG2_E, out=kernel)
                kernel.add_(long_part, alpha=_LOG2_E)
                # base 2: where it underflows, the natural exponential is 10 to 100 times slower
                yield _Tile(images, span, long, short, kernel.clamp_max_(0).exp2_())

    def multiply(self, tile: _Tile, values: Tensor, out: Tensor, onto_long: bool) -> None:
        """Multiplies the kernel with values of the short side and stores, or of the long side and adds."""
        if not onto_long:
            values = self.fold("w", values[tile.images, :, tile.tokens])
            out[tile.images].flatten(0, 1).baddbmm_(tile.kernel, values)
            return
        values, out = self.fold("u", values[tile.images]), out[tile.images, :, tile.tokens].flatten(0, 1)
        if out.dtype == self._dtype:
            torch.bmm(tile.kernel.mT, values, out=out)
        else:
            out.copy_(torch.bmm(tile.kernel.mT, values))

    def differentiate(
        self, tile: _Tile, pairs: list[tuple[Tensor, Tensor]], grad_long: Tensor, grad_short: Tensor
    ) -> None:
        """Stores or adds the gradients of the sum over `pairs (l, s)` of `sum(l * K s)`; overwrites the tile."""
        weights = self.scratch("weights", tile.kernel.shape)  # of the kernel's entries
        for i, (long_values, short_values) in enumerate(pairs):
            u, w = self.fold("u", short_values[tile.images]), self.fold("w", long_values[tile.images, :, tile.tokens])
            torch.baddbmm(weights, u, w.mT, beta=min(i, 1), out=weights)
        weights.mul_(tile.kernel)
        toward_long = grad_short[tile.images].flatten(0, 1).baddbmm_(weights, tile.long)
        toward_long.addcmul_(weights.sum(-1, keepdim=True), tile.short, value=-1)
        toward_short = torch.bmm(weights.mT, tile.short, out=self.scratch("kernel", tile.long.shape))
        out = grad_long[tile.images, :, tile.tokens].flatten(0, 1)
        torch.addcmul(toward_short, weights.sum(-2).unsqueeze(-1), tile.long, value=-1, out=out)

    def result(self, shape: tuple[int, ...], dtype: torch.dtype, summed: bool) -> Tensor:
        """Returns memory for a result; sums over tiles start at 0 and are not rounded before the last."""
        return self.long.new_zeros(shape, dtype=self._dtype) if summed else self.long.new_empty(shape, dtype=dtype)

    def fold(self, name: str, z: Tensor) -> Tensor:
        """Returns `(G, H, ...)` as `(G H, ...)` in the dtype of the computation; a copy only where it must be."""
        g, h = z.shape[:2]
        if z.dtype == self._dtype and (g == 1 or h == 1 or z.stride(0) == h * z.stride(1)):
            return z.flatten(0, 1)
        return self.scratch(name, z.shape).copy_(z).flatten(0, 1)

    def scratch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Returns uninitialised memory, the same for the same name where it suffices."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = self.long.new_empty(size, dtype=self._dtype)
        return self._memory[name][:size].view(shape)

    def _exponent_part(self, points: Tensor) -> Tensor:
        """Returns `-|p|^2 / 2` in base 2, `(G H, ...)`."""
        squares = torch.mul(points, points, out=self.scratch("kernel", points.shape))
        return squares.sum(-1).mul_(-0.5)
