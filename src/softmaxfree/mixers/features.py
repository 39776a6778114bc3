"""Attention by feature maps, linear in the tokens: products from the right, whatever the map."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from softmaxfree.mixers.mixer import valid_tokens, zero_tokens
from softmaxfree.ops.precision import full_precision, widen


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    eps: float | Tensor = 0.0,
    least: float = 0.0,
    turn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Returns `q (k^T v) / (q sum_j k_j + eps)`: attention whose weights are inner products of features.

    Sums run in float32 (float64 for float64), also under autocast.

    Args:
        q: features of the queries `(B, H, N, F)`, any float dtype.
        k: features of the keys `(B, H, M, F)`.
        v: values `(B, H, M, E)`.
        mask: `(B, *grid)` bool, True where a token is valid: the features of other keys count as 0.
        eps: added to the denominator.
        least: what the denominator is at least, if not 0.
        turn: what features of all tokens go through in the numerator, and not in the denominator.

    Returns:
        `(B, H, N, E)` in the dtype of `v`.
    """
    with full_precision(v):
        if mask is not None:
            k = zero_tokens(k, mask)  # after the feature map, which need not map 0 to 0
        q, k = widen(q), widen(k)
        total = q @ k.sum(-2).unsqueeze(-1) + eps
        if least:
            total = total.clamp(min=least)
        if turn is not None:
            q, k = turn(q), turn(k)
        return (q @ (k.transpose(-1, -2) @ widen(v)) / total).to(v.dtype)


def mask_logits(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns logits `(B, H, N, F)` with the least number of their dtype, at which exp is 0, where `mask` is False.

    Not minus infinity, of which a softmax over padding alone makes NaN.
    """
    if mask is None:
        return x
    padding = ~valid_tokens(mask, x.shape[-2])[:, None, :, None]
    return x.masked_fill(padding, torch.finfo(x.dtype).min)


def by_sign(x: Tensor) -> Tensor:
    """Returns the positive part and the size of the negative part of `(..., D)` side by side, `(..., 2 D)`."""
    return F.relu(torch.cat([x, -x], -1))
