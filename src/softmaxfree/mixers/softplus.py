"""Softplus attention with lengths of scale, and its sharpening (LSSA and LSSAR, arXiv 2501.13428)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softmaxfree.arguments import require, require_number
from softmaxfree.mixers.mixer import AbstractAttention, log_num_valid, num_valid, valid_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.rows import in_rows
from softmaxfree.ops.precision import full_precision, widen

_FLAT = 1e-4  # of the largest `N A - 1` of a row: below it rounding alone decides what is sharpened


@register
class SoftplusAttention(AbstractAttention):
    """`A v` with rows of `softplus(ln D ln N cos(q_i, k_j))` that are divided by their sum (LSSA).

    With a power `p`, rows of `relu(N A - 1)^p` over their sum take the place of `A` (LSSAR): keys below the mean weight
    get none. `N` is the number of valid tokens. The formulas are those for tokens that all see each other. A row in
    which no weight exceeds the mean by a ten-thousandth keeps `A`; the formula alone is 0 / 0 for equal tokens.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        power: `p`, 1 or more, 15 in the paper; 0: no sharpening.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "softplus"
    source = "Gao and Spratling, ICML 2026"
    linear = False
    row_sum = 1.0

    def __init__(self, dim: int, num_heads: int, *, power: float = 0, **common: Any) -> None:
        super().__init__(dim, num_heads, **common)
        require_number("power", power, 0)
        require(power == 0 or power >= 1, "power", power, "1 or more, or 0 for none")
        self.power = power

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        padding = None if mask is None else ~valid_tokens(mask, k.shape[2])[:, None, None]
        n = num_valid(mask, k)
        with full_precision(v):
            q, k = F.normalize(widen(q), dim=-1), F.normalize(widen(k), dim=-1)
            q = q * (math.log(self.head_dim) * log_num_valid(mask, q))

            def rows(q: Tensor) -> Tensor:
                weights = F.softplus(q @ k.transpose(-2, -1))
                if padding is not None:
                    weights = weights.masked_fill(padding, 0.0)
                total = weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
                weights = weights / total  # of padding alone the total is 0
                if self.power:
                    weights = self._sharpened(weights, n)
                return weights.to(v.dtype) @ v

            return in_rows(rows, q, k)

    def _sharpened(self, weights: Tensor, n: Tensor | int) -> Tensor:
        excess = F.relu(n * weights - 1)
        peak = excess.detach().amax(-1, keepdim=True)  # cancels, and keeps the power from overflowing
        flat = peak < _FLAT
        sharp = (excess / peak.masked_fill(flat, 1.0)).pow(self.power)
        total = sharp.sum(-1, keepdim=True).masked_fill(flat, 1.0)
        return torch.where(flat, weights, sharp / total)
