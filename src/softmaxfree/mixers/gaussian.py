"""Exact Gaussian attention, quadratic in the tokens: what SOFT approximates (SOFT, eq. 5)."""

from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from softmaxfree.layers.linear import Linear
from softmaxfree.mixers.mixer import AbstractMixer, num_valid, require_flag, valid_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.ops.nystrom import gaussian_attention
from softmaxfree.ops.precision import widen


@register
class GaussianAttention(AbstractMixer):
    """`K(q, k) v`, `K(x, y) = exp(-|x - y|^2 / 2)` on tokens scaled by `D^(-1/4)`: `exp(-|q_i - k_j|^2 / (2 sqrt(D)))`.

    Rows are not normalised. `mix` takes its queries and keys already scaled, as that of `soft` does.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        tied: whether keys are the queries, as in SOFT, so that the kernel matrix is symmetric and positive definite.
        averaged: whether the sum over the tokens is divided by their number, so that it does not grow with it.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    name = "gaussian"
    source = "SOFT, NeurIPS 2021"
    linear = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        tied: bool = True,
        averaged: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads)
        require_flag("tied", tied)
        require_flag("averaged", averaged)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.tied, self.averaged = tied, averaged
        self.q = Linear(dim, dim, **factory)
        self.k = None if tied else Linear(dim, dim, **factory)
        self.v = Linear(dim, dim, **factory)
        self.proj = Linear(dim, dim, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to scaled queries and keys, and values, `(B, H, N, D)` each."""
        heads, scale = (self.num_heads, self.head_dim), self.head_dim**-0.25
        q = (self.q(x) * scale).unflatten(-1, heads).transpose(1, 2)
        k = q if self.k is None else (self.k(x) * scale).unflatten(-1, heads).transpose(1, 2)
        return q, k, self.v(x).unflatten(-1, heads).transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        dtype, valid = v.dtype, None if mask is None else valid_tokens(mask, k.shape[2])
        if self.averaged:
            q, k, v = widen(q), widen(k), widen(v) / num_valid(mask, v)
        return gaussian_attention(q, k, v, mask=valid).to(dtype)
