"""Sigmoid attention: each pair of tokens weighed on its own (Ramapuram et al., ICLR 2025)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softmaxfree.arguments import require
from softmaxfree.mixers.mixer import AbstractAttention, log_num_valid, require_flag, zero_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.rows import in_rows
from softmaxfree.ops.precision import widen


@register
class SigmoidAttention(AbstractAttention):
    """`sigmoid(q k^T / sqrt(D) + b) v` (arXiv 2409.04431, equation 3). Rows are not normalised.

    With `b = -ln N` a row sums to about 1 at the start. The released code fixes `N` at that of the training; here it is
    the number of valid tokens of each image, so that stages and image sizes need no setting.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        bias: `b`; "auto" for `-ln N`.
        qk_norm: whether queries and keys go through a LayerNorm over each head, as in the paper's larger models.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "sigmoid"
    source = "Ramapuram et al., ICLR 2025"
    linear = False

    def __init__(
        self, dim: int, num_heads: int, *, bias: float | Literal["auto"] = "auto", qk_norm: bool = False, **common: Any
    ) -> None:
        super().__init__(dim, num_heads, **common)
        number = isinstance(bias, int | float) and not isinstance(bias, bool)
        require(
            bias == "auto" or (number and math.isfinite(bias)), "bias", bias, "a finite number, or 'auto' for -ln N"
        )
        require_flag("qk_norm", qk_norm)
        self.bias, self.qk_norm = bias, qk_norm
        factory: dict[str, Any] = {key: common.get(key) for key in ("device", "dtype")}
        self.q_norm = nn.LayerNorm(self.head_dim, **factory) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, **factory) if qk_norm else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to queries, keys and values, `(B, H, N, D)` each."""
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        bias = -log_num_valid(mask, v) if self.bias == "auto" else self.bias
        values = v if mask is None else zero_tokens(v, mask)  # no sum of weights: a zero value leaves no trace

        def rows(q: Tensor) -> Tensor:
            weights = torch.sigmoid(widen(q @ k.transpose(-2, -1)) + bias)
            return (weights.to(v.dtype) @ values).to(v.dtype)

        return in_rows(rows, q * self.scale, k)
