"""Test-time training: an inner model learns each image's keys and values in one step (ViT^3, CVPR 2026)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require
from softmaxfree.layers.linear import Linear
from softmaxfree.mixers.mixer import AbstractMixer, num_valid, require_flag, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen

_RATE = 1 / 3  # of the inner loss, in both branches whatever the width of a head
_BASE = 10_000.0


@register
class OneStepTraining(AbstractMixer):
    """`f(q)`, where `f` was fitted to `f(k) = v` by one step of gradient descent, for each image (arXiv 2512.01643).

    `H` heads have `f(x) = (x W1) * silu(x W2)`; one head more, of the width of a head, has a depthwise 3x3 convolution
    of the map. Both start from learned weights. The inner loss is `-1/3` of the mean over the tokens of `f(k) . v`. Its
    gradient `G`, in closed form, is clipped to `G / (|G| + 1)` (each output channel on its own), and the step has
    rate 1. There are no weights between tokens, and the result is not linear in `v`.

    `mix` takes `H + 1` heads; the last is that of the convolution. Prefix tokens take part in the first branch only.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        qkv_bias: whether the projection of queries, keys and values has a bias.
        rope: whether queries and keys of the first branch are turned by their place, as in the hierarchical models: the
            first half of all channels by the row, the other by the column.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    name = "ttt"
    source = "ViT^3, CVPR 2026"
    linear_in_v = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        rope: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads)
        require_flag("qkv_bias", qkv_bias)
        require_flag("rope", rope)
        require(not rope or dim % 4 == 0, "rope", rope, f"False where the width, {dim}, is no multiple of 4")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.qkv_bias, self.rope = qkv_bias, rope
        width = self.head_dim
        self.qkv = Linear(dim, 3 * (dim + width), bias=qkv_bias, **factory)
        self.w1 = nn.Parameter(torch.empty(num_heads, width, width, **factory))
        self.w2 = nn.Parameter(torch.empty(num_heads, width, width, **factory))
        self.w3 = nn.Parameter(torch.empty(width, 9, **factory))
        self.proj = Linear(dim + width, dim, **factory)
        for weight in (self.w1, self.w2, self.w3):
            trunc_normal_(weight, std=0.02)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to queries, keys and values, `(B, H + 1, N, D)` each."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads + 1, -1)).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`; all have `H + 1` heads."""
        dtype = v.dtype
        prefix, heads = v.shape[2] - math.prod(grid), self.num_heads
        n, cells = num_valid(mask, v), num_valid(mask, v[:, :, prefix:])
        if mask is not None:
            v = zero_tokens(v, mask)
        with full_precision(v):
            q, k, v = widen(q), widen(k), widen(v)
            own = q[:, :heads], k[:, :heads]
            if self.rope:
                own = turned(own[0], grid), turned(own[1], grid)
            gated = self._gated(*own, v[:, :heads], n)
            q, k, v = (x[:, heads, prefix:] for x in (q, k, v))
            if mask is not None:
                q, k, v = (zero_tokens(x, mask) for x in (q, k, v))
            convolved = self._convolved(q, k, v, grid, cells)
            convolved = F.pad(convolved, (0, 0, prefix, 0)) if prefix else convolved
            return torch.cat([gated, convolved.unsqueeze(1)], 1).to(dtype)

    def _gated(self, q: Tensor, k: Tensor, v: Tensor, n: Tensor | int) -> Tensor:
        w1, w2 = widen(self.w1), widen(self.w2)
        error = -_RATE * v / n
        linear, gate = k @ w1, k @ w2
        sigmoid = gate.sigmoid()
        grad1 = k.mT @ (error * gate * sigmoid)
        grad2 = k.mT @ (error * linear * sigmoid * (1 + gate * (1 - sigmoid)))
        return (q @ (w1 - _clipped(grad1, -2))) * F.silu(q @ (w2 - _clipped(grad2, -2)))

    def _convolved(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], n: Tensor | int) -> Tensor:
        """The second branch, tokens `(B, N, D)` to tokens; an image alone has its own filter."""
        error = -_RATE * v / (n.squeeze(1) if isinstance(n, Tensor) else n)
        grad = (_windows(k, grid) @ error.transpose(1, 2).unsqueeze(-1)).squeeze(-1)
        filters = widen(self.w3) - _clipped(grad, -1)
        return (filters.unsqueeze(-2) @ _windows(q, grid)).squeeze(-2).transpose(1, 2)


def _clipped(grad: Tensor, dim: int) -> Tensor:
    return grad / (torch.linalg.vector_norm(grad, dim=dim, keepdim=True) + 1)


def _windows(x: Tensor, grid: list[int]) -> Tensor:
    """Returns the 3x3 neighbours of each token `(B, N, D)`, with zeros outside, `(B, D, 9, N)`; a sequence is a row."""
    rows, columns = [1, *grid][-2:]
    image = F.pad(x.transpose(1, 2).unflatten(-1, (rows, columns)), (1, 1, 1, 1))
    shifts = [image[:, :, y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    return torch.stack(shifts, 2).flatten(3)


def turned(x: Tensor, grid: list[int]) -> Tensor:
    """Turns pairs of channels of all heads together by the token's place; prefix tokens stay.

    Args:
        x: `(B, H, N, D)`, `H D` a multiple of 4.
        grid: sizes of the token grid; a sequence is an image of one row.

    Returns:
        The turned tokens: the first half of the `H D` channels by the row, the other by the column, pair `i` of a half
        by `10000^(-i / (H D / 4))` a step.
    """
    batch, heads, tokens, width = x.shape
    pairs = heads * width // 4
    rates = _BASE ** (-torch.arange(pairs, device=x.device, dtype=x.dtype) / pairs)
    rows, columns = [1, *grid][-2:]
    down, across = (torch.arange(n, device=x.device, dtype=x.dtype)[:, None] * rates for n in (rows, columns))
    angles = torch.cat([down[:, None].expand(-1, columns, -1), across.expand(rows, -1, -1)], -1).flatten(0, 1)
    angles = F.pad(angles, (0, 0, tokens - angles.shape[0], 0))
    first, second = x.transpose(1, 2).reshape(batch, tokens, 2 * pairs, 2).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    out = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return out.view(batch, tokens, heads, width).transpose(1, 2)
