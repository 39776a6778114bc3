"""The Gaussian kernel product over tiles that fit in a CPU's cache; runs on any device (README.md, "Tiles").

Of `x` and `y`, the one with more points is the long side, walked in tiles of `T` rows; the other is the short
side of `S` points, held whole. `G` images are taken at once where a tile has room for them.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from softmaxfree.ops.precision import compute_dtype, widen

# of a tile's kernel matrix, for each thread and at most: in cache, and still few tiles; or what keeps a GPU busy
_CPU_TILE_BYTES, _MAX_CPU_TILE_BYTES = 1 << 21, 1 << 23
_GPU_TILE_BYTES = 1 << 26
# rows below which a matrix product loses its speed, whatever the cache
_MIN_ROWS = 64
_LOG2_E = 1 / math.log(2)


def forward(x: Tensor, y: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Returns `K b`, `(B, H, N, E)`."""
    x_is_long = x.shape[-2] >= y.shape[-2]
    tiles = _Tiles(x, y) if x_is_long else _Tiles(y, x)
    out = _result((*x.shape[:-1], b.shape[-1]), out_dtype, x, summed=not x_is_long)
    for images, tokens, _, kernel in tiles.walk():
        _multiply(kernel, b, out, images, tokens, onto_long=x_is_long)
    return out.to(out_dtype)


def backward(x: Tensor, y: Tensor, b: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients for `x`, `y` and `b`; computes the kernel again."""
    x_is_long = x.shape[-2] >= y.shape[-2]
    tiles = _Tiles(x, y) if x_is_long else _Tiles(y, x)
    values_long, values_short = (grad, b) if x_is_long else (b, grad)
    grad_x, grad_y = x.new_empty(x.shape), y.new_empty(y.shape)
    grad_long, grad_short = (grad_x, grad_y) if x_is_long else (grad_y, grad_x)
    grad_b = _result(b.shape, b.dtype, x, summed=x_is_long)
    sums_short = torch.zeros_like(tiles.short)
    for images, tokens, rows, kernel in tiles.walk():
        _multiply(kernel, grad, grad_b, images, tokens, onto_long=not x_is_long)
        s = tiles.scratch("s", kernel.shape)
        torch.bmm(_fold(values_long[images, :, tokens]), _fold(values_short[images]).mT, out=s).mul_(kernel)
        _fold(sums_short[images]).baddbmm_(s.mT, _fold(rows))
        sums = tiles.scratch("sums", rows.shape)
        torch.bmm(s, _fold(tiles.short[images]), out=_fold(sums))
        _store_gradient(sums, rows, grad_long[images, :, tokens])
    _store_gradient(sums_short, tiles.short, grad_short)
    return grad_x, grad_y, grad_b.to(b.dtype)


def not_supported_reasons(x: Tensor, y: Tensor, b: Tensor) -> list[str]:
    """Returns why these tensors cannot be walked in tiles; empty when they can."""
    return [] if x.ndim == 4 else [f"tiles need (B, H, N, D), got {x.ndim} dimensions"]


class _Tiles:
    """The kernel matrix of a long and a short set of points, one tile at a time, in memory used again."""

    def __init__(self, long: Tensor, short: Tensor) -> None:
        self._long, self._dtype = long, compute_dtype(long.dtype)
        self._memory: dict[str, Tensor] = {}
        _, heads, rows, width = long.shape
        row_bytes = max(1, heads * short.shape[-2] * self._dtype.itemsize)
        tile_bytes = _GPU_TILE_BYTES
        if long.device.type == "cpu":
            tile_bytes = min(_CPU_TILE_BYTES * torch.get_num_threads(), _MAX_CPU_TILE_BYTES)
        room = max(_MIN_ROWS, tile_bytes // row_bytes)
        # neither depends on the batch, so an image is cut in the same way whatever its neighbours
        self._rows = math.ceil(rows / max(1, math.ceil(rows / room)))
        self._group = max(1, room // max(1, rows))
        self.short = self._augment(short, short.new_empty(*short.shape[:-1], width + 2, dtype=self._dtype))
        point, one, square = self.short.split((width, 1, 1), -1)
        self._base2 = torch.cat((point, square, one), -1).mul_(_LOG2_E)

    def walk(self) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Yields images, tokens, augmented points `(G, H, T, D + 2)` and their kernel `(G H, T, S)`."""
        batch, _, tokens, width = self._long.shape
        for i in range(0, batch, self._group):
            images = slice(i, i + self._group)
            base2 = self._base2[images].flatten(0, 1).mT
            for j in range(0, tokens, self._rows):
                points = self._long[images, :, j : j + self._rows]
                rows = self._augment(points, self.scratch("rows", (*points.shape[:-1], width + 2)))
                exponent = self.scratch("kernel", (base2.shape[0], points.shape[2], base2.shape[-1]))
                torch.bmm(rows.flatten(0, 1), base2, out=exponent)
                # base 2: where it underflows, the natural exponential is 10 to 100 times slower
                yield images, slice(j, j + self._rows), rows, exponent.clamp_max_(0).exp2_()

    def scratch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Returns uninitialised memory, the same for the same name where it suffices."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = self._long.new_empty(size, dtype=self._dtype)
        return self._memory[name][:size].view(shape)

    def _augment(self, points: Tensor, out: Tensor) -> Tensor:
        """Stores `[p, 1, -|p|^2 / 2]`."""
        width = points.shape[-1]
        p = out[..., :width].copy_(points)
        out[..., width] = 1
        squares = torch.mul(p, p, out=self.scratch("squares", points.shape))
        torch.sum(squares, -1, out=out[..., width + 1]).mul_(-0.5)
        return out


def _fold(z: Tensor) -> Tensor:
    """Returns `(G, H, ...)` as `(G H, ...)` in the dtype of the computation; no copy where strides allow."""
    return widen(z).flatten(0, 1)


def _result(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor, summed: bool) -> Tensor:
    """Returns memory for a result: sums over tiles start at 0 and are not rounded before the last."""
    if summed:
        return like.new_zeros(shape, dtype=compute_dtype(like.dtype))
    return like.new_empty(shape, dtype=dtype)


def _multiply(kernel: Tensor, values: Tensor, out: Tensor, images: slice, tokens: slice, onto_long: bool) -> None:
    """Multiplies a tile with values of the short side and stores, or of the long side and adds."""
    if not onto_long:
        _fold(out[images]).baddbmm_(kernel.mT, _fold(values[images, :, tokens]))
        return
    out, values = out[images, :, tokens].flatten(0, 1), _fold(values[images])
    if out.dtype == kernel.dtype:
        torch.bmm(kernel, values, out=out)
    else:
        out.copy_(torch.bmm(kernel, values))


def _store_gradient(sums: Tensor, points: Tensor, out: Tensor) -> None:
    """Stores `sum_j S_ij y_j - (sum_j S_ij) x_i`, given `S` times augmented `y`, and augmented `x`."""
    width = out.shape[-1]
    torch.addcmul(sums[..., :width], sums[..., width, None], points[..., :width], value=-1, out=out)
