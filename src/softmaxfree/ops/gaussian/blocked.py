"""The Gaussian kernel product over tiles that fit in a CPU's cache; runs on any device (README.md, "Tiles").

Of `x` and `y`, the one with more points is the long side, walked in tiles of `T` points; the other is the short side
of `S` points, held whole. `G` images are taken at once where a tile has room for them.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from softmaxfree.ops.gaussian import naive
from softmaxfree.ops.precision import compute_dtype

# of a tile's kernel matrix, for each thread and at most: in cache, and still few tiles; or what keeps a GPU busy
_CPU_TILE_BYTES, _MAX_CPU_TILE_BYTES = 3 << 19, 1 << 23
_GPU_TILE_BYTES = 1 << 26
# of the kernel matrices that are kept for a second walk, beside the one in hand: about the last-level cache
_KEPT_BYTES = 1 << 24
# points below which a matrix product loses its speed, whatever the cache
_MIN_POINTS = 64
_LOG2_E = 1 / math.log(2)


def forward(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Returns `K b`, `(B, H, N, E)`."""
    tiles = _Tiles(x, y)
    out = tiles.result((*x.shape[:-1], b.shape[-1]), out_dtype, onto_x=True)
    for images in tiles.groups():
        for tile in tiles.walk(images):
            tiles.multiply(tile, b, out, onto_x=True)
    return out.to(out_dtype)


def backward(x: Tensor, y: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y` and `b`; computes the kernel again."""
    tiles = _Tiles(x, y)
    grad_x = tiles.result(x.shape, x.dtype, onto_x=True)
    grad_y, grad_b = (tiles.result(z.shape, z.dtype, onto_x=False) for z in (y, b))
    for images in tiles.groups():
        for tile in tiles.walk(images):
            tiles.multiply(tile, grad, grad_b, onto_x=False)
            tiles.differentiate(tile, [(grad, b)], grad_x, grad_y)
    return grad_x.to(x.dtype), grad_y.to(y.dtype), grad_b.to(b.dtype)


def tied_forward(x: Tensor, y: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `K z K^T v` and, for the gradient, `K^T v` in the dtype of `z`."""
    tiles = _Tiles(x, y)
    kv = tiles.result((*y.shape[:-1], v.shape[-1]), z.dtype, onto_x=False)
    w, out = torch.empty_like(kv), tiles.result(v.shape, v.dtype, onto_x=True)
    for images in tiles.groups():
        for tile in tiles.walk(images):
            tiles.multiply(tile, v, kv, onto_x=False)
        torch.matmul(z[images], kv[images], out=w[images])
        for tile in tiles.walk(images, reverse=True):
            tiles.multiply(tile, w, out, onto_x=True)
    return out.to(v.dtype), kv


def tied_backward(
    x: Tensor, y: Tensor, z: Tensor, v: Tensor, kv: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y`, `z` and `v`; computes the kernel again."""
    tiles = _Tiles(x, y)
    w, grad_w, grad_kv = z @ kv, tiles.result(kv.shape, z.dtype, onto_x=False), torch.empty_like(kv)
    grad_x, grad_v = (tiles.result(t.shape, t.dtype, onto_x=True) for t in (x, v))
    grad_y = tiles.result(y.shape, y.dtype, onto_x=False)
    for images in tiles.groups():
        for tile in tiles.walk(images):
            tiles.multiply(tile, grad, grad_w, onto_x=False)
        torch.matmul(z[images].mT, grad_w[images], out=grad_kv[images])
        for tile in tiles.walk(images, reverse=True):
            tiles.multiply(tile, grad_kv, grad_v, onto_x=True)
            tiles.differentiate(tile, [(grad, w), (v, grad_kv)], grad_x, grad_y)
    return grad_x.to(x.dtype), grad_y.to(y.dtype), grad_w @ kv.mT, grad_v.to(v.dtype)


def not_supported_reasons(x: Tensor, y: Tensor, b: Tensor) -> list[str]:
    """Returns why these tensors cannot be walked in tiles; empty when they can."""
    return [] if x.ndim == 4 else [f"tiles need (B, H, N, D), got {x.ndim} dimensions"]


class _Tile(NamedTuple):
    images: slice
    tokens: slice
    kernel: Tensor  # (G H, T, S)


class _Tiles:
    """The kernel matrix of `x` and `y`, one tile at a time, in memory used again."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x_is_long_side = x.shape[-2] >= y.shape[-2]
        self._dtype, self._centre = compute_dtype(x.dtype), naive.centre(y)
        self._long, short = (x, y) if self.x_is_long_side else (y, x)
        self._short = short - self._centre
        self._memory: dict[str, Tensor] = {}
        self._kept: dict[int, _Tile] = {}
        _, heads, points, _ = self._long.shape
        tile_bytes = _GPU_TILE_BYTES
        if x.device.type == "cpu":
            tile_bytes = min(_CPU_TILE_BYTES * torch.get_num_threads(), _MAX_CPU_TILE_BYTES)
        room = max(_MIN_POINTS, tile_bytes // max(1, heads * self._short.shape[-2] * self._dtype.itemsize))
        # neither depends on the batch, so an image is cut in the same way whatever its neighbours
        self.tile_points = math.ceil(points / max(1, math.ceil(points / room)))
        self.images_at_once = max(1, room // max(1, points))
        self.num_kept_tiles = 1 + _KEPT_BYTES // tile_bytes

    def groups(self) -> Iterator[slice]:
        """Yields the images that are taken at once."""
        for i in range(0, len(self._long), self.images_at_once):
            yield slice(i, i + self.images_at_once)

    def walk(self, images: slice, reverse: bool = False) -> Iterator[_Tile]:
        """Yields the tiles of a group of images, the first first, or with `reverse` the last first.

        The last slot holds the newest tile, the others the first tiles: these need not be computed again on the way
        back.
        """
        tiles = list(enumerate(range(0, self._long.shape[-2], self.tile_points)))
        for i, j in reversed(tiles) if reverse else tiles:
            slot, span = min(i, self.num_kept_tiles - 1), slice(j, j + self.tile_points)
            tile = self._kept.get(slot)
            if tile is None or (tile.images, tile.tokens) != (images, span):
                tile = self._kept[slot] = self._compute(images, span, f"kernel {slot}")
            yield tile

    def _compute(self, images: slice, span: slice, memory: str) -> _Tile:
        short = self._short[images].flatten(0, 1)
        short_part = torch.linalg.vecdot(short, short).mul_(-0.5).unsqueeze(-2)
        long = self._centred(images, span)
        long_part = torch.linalg.vecdot(long, long).mul_(-0.5).unsqueeze(-1)
        kernel = self.scratch(memory, (*long.shape[:-1], short.shape[-2]))
        torch.baddbmm(short_part, long, short.mT, beta=_LOG2_E, alpha=_LOG2_E, out=kernel)
        kernel.add_(long_part, alpha=_LOG2_E)
        # base 2: where it underflows, the natural exponential is 10 to 100 times slower
        return _Tile(images, span, kernel.clamp_max_(0).exp2_())

    def multiply(self, tile: _Tile, values: Tensor, out: Tensor, onto_x: bool) -> None:
        """Multiplies the kernel with values of one side and stores them, or adds them, on the other."""
        if onto_x != self.x_is_long_side:
            values = self.heads_as_batch("w", values[tile.images, :, tile.tokens])
            out[tile.images].flatten(0, 1).baddbmm_(tile.kernel.mT, values)
            return
        values, out = self.heads_as_batch("u", values[tile.images]), out[tile.images, :, tile.tokens]
        if self._needs_no_copy(out):
            torch.bmm(tile.kernel, values, out=out.flatten(0, 1))
        else:
            out.copy_(torch.bmm(tile.kernel, values).unflatten(0, out.shape[:2]))

    def differentiate(self, tile: _Tile, pairs: list[tuple[Tensor, Tensor]], grad_x: Tensor, grad_y: Tensor) -> None:
        """Stores or adds the gradients of the sum over `pairs (p, q)` of `sum(p * K q)`."""
        weights = self.scratch("weights", tile.kernel.shape)  # of the kernel's entries
        for i, pair in enumerate(pairs):
            long_values, short_values = pair if self.x_is_long_side else pair[::-1]
            u, w = (
                self.heads_as_batch("u", short_values[tile.images]),
                self.heads_as_batch("w", long_values[tile.images, :, tile.tokens]),
            )
            torch.baddbmm(weights, w, u.mT, beta=min(i, 1), out=weights)
        weights.mul_(tile.kernel)
        long, short = self._centred(tile.images, tile.tokens), self._short[tile.images].flatten(0, 1)
        grad_long, grad_short = (grad_x, grad_y) if self.x_is_long_side else (grad_y, grad_x)
        toward_long = grad_short[tile.images].flatten(0, 1).baddbmm_(weights.mT, long)
        toward_long.addcmul_(weights.sum(-2).unsqueeze(-1), short, value=-1)
        toward_short = torch.bmm(weights, short, out=self.scratch("points", long.shape))
        out = grad_long[tile.images, :, tile.tokens]
        terms = (z.unflatten(0, out.shape[:2]) for z in (toward_short, weights.sum(-1, keepdim=True), long))
        torch.addcmul(*terms, value=-1, out=out)

    def result(self, shape: tuple[int, ...], dtype: torch.dtype, onto_x: bool) -> Tensor:
        """Returns memory for a result; sums over tiles start at 0 and are not rounded before the last."""
        if onto_x == self.x_is_long_side:
            b, h, n, e = shape
            return self._long.new_empty(b, n, h, e, dtype=dtype).transpose(1, 2)
        return self._long.new_zeros(shape, dtype=self._dtype)

    def _centred(self, images: slice, span: slice) -> Tensor:
        """Returns points of the long side `(G H, T, D)`, seen from the centre."""
        long = self._long[images, :, span]
        return torch.sub(long, self._centre[images], out=self.scratch("long", long.shape)).flatten(0, 1)

    def heads_as_batch(self, name: str, z: Tensor) -> Tensor:
        """Returns `(G, H, ...)` as `(G H, ...)` in the dtype of the computation; a copy only where it must be."""
        return (z if self._needs_no_copy(z) else self.scratch(name, z.shape).copy_(z)).flatten(0, 1)

    def _needs_no_copy(self, z: Tensor) -> bool:
        g, h = z.shape[:2]
        return z.dtype == self._dtype and (g == 1 or h == 1 or z.stride(0) == h * z.stride(1))

    def scratch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Returns uninitialised memory, the same for the same name where it suffices."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = self._long.new_empty(size, dtype=self._dtype)
        return self._memory[name][:size].view(shape)
