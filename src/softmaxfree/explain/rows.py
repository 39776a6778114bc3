"""One row of a token-mixing matrix, from the factors that it is a product of; the matrix itself is never made."""

import torch
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.explain.capture import Captured
from softmaxfree.mixers import AbstractMixer

__all__ = ["mixer_row", "require_maps", "softmax_row"]

_LOGITS = 1 << 24  # of softmax that are there at once
_ONE_ROW, _ALL_ROWS = 256.0, 1 / 16


def require_maps(mixer: AbstractMixer) -> None:
    """Raises InputError for a mixer whose result is no weighted sum of values."""
    if not mixer.mixes:
        raise InputError(f"{mixer.name} is a mixer without maps: its tokens do not see each other")
    if not mixer.linear_in_v:
        raise InputError(f"{mixer.name} is a mixer without maps: its result is not linear in the values")


def mixer_row(mixer: AbstractMixer, captured: Captured, token: int | None) -> Tensor:
    """Returns the weights with which a query takes the values of all tokens.

    `mix` is linear in `v`, `mix(q, k, v) = W v`. A vector-Jacobian product with `e_i` in the place of query `i` is
    `W^T e_i`, row `i` of `W`, at the cost of one backward pass of `mix` and in its memory. Where `W` differs between
    the channels of a head, as that of `polaformer`, it is the mean of theirs.

    Args:
        mixer: linear in `v`.
        captured: its queries and keys.
        token: number of the query, prefix tokens included; None is the mean of all rows on the grid.

    Returns:
        `(H, N)`, float32 or float64.

    Raises:
        InputError: the mixer has no maps.
    """
    require_maps(mixer)
    grid = list(captured.grid)
    with torch.inference_mode(False), torch.enable_grad():
        q, mask = _ordinary(captured.q), None if captured.mask is None else _ordinary(captured.mask)
        k = q if captured.k is captured.q else _ordinary(captured.k)  # which mixers ask for
        # as wide as the network's own values, so that the same kernels run
        v = q.new_zeros(q.shape).requires_grad_()
        out = mixer.mix(q, k, v, grid, mask)
        cotangent, rows = _cotangent(out.detach(), captured, token)
        (gradient,) = torch.autograd.grad(out, v, cotangent)
    return gradient[0].sum(-1, dtype=torch.promote_types(gradient.dtype, torch.float32)) / (rows * out.shape[-1])


def _ordinary(x: Tensor) -> Tensor:
    """One that autograd may keep, also of a tensor that was made in inference mode."""
    return x.clone() if x.is_inference() else x


def _cotangent(out: Tensor, captured: Captured, token: int | None) -> tuple[Tensor, float]:
    """Ones in the asked rows, and their number, both times a power of two: in half precision neither a small weight of
    one row nor the sum over many rows leaves the range.
    """
    cotangent = torch.zeros_like(out)
    if token is not None:
        cotangent[:, :, token] = _ONE_ROW
        return cotangent, _ONE_ROW
    if captured.mask is None:
        cotangent[:, :, captured.prefix :] = _ALL_ROWS
        return cotangent, _ALL_ROWS * (out.shape[2] - captured.prefix)
    valid = captured.mask.flatten(1)[:, None, :, None]
    cotangent[:, :, captured.prefix :] = valid.to(out.dtype) * _ALL_ROWS
    return cotangent, _ALL_ROWS * float(valid.sum())


def softmax_row(captured: Captured, token: int | None) -> Tensor:
    """Returns row `token` of `softmax(q k^T scale)`, or the mean of all rows on the grid.

    Args:
        captured: queries and keys of a softmax attention.
        token: number of the query, prefix tokens included; None is the mean, whose time is quadratic in the tokens.

    Returns:
        `(H, N)`, float32 or float64.
    """
    q, k = captured.q[0], captured.k[0]
    dtype = torch.promote_types(q.dtype, torch.float32)
    tokens = q.shape[1]
    first, end = (captured.prefix, tokens) if token is None else (token, token + 1)
    step = max(1, _LOGITS // (len(q) * tokens))
    total, rows = torch.zeros(len(q), tokens, dtype=dtype, device=q.device), 0
    assert captured.scale is not None  # told of every softmax
    with torch.no_grad():
        keys = k.to(dtype).mT
        for at in range(first, end, step):
            chunk = slice(at, min(at + step, end))
            logits = q[:, chunk].to(dtype) @ keys * captured.scale
            mask = captured.mask
            if mask is not None:
                mask = mask.expand(1, len(q), tokens, tokens)[0, :, chunk]
                logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
            weights = logits.softmax(-1)
            total, rows = total + weights.sum(1), rows + weights.shape[1]
    return total / rows
