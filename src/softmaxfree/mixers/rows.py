"""Mixers whose weights are all pairs of tokens, without all pairs in memory at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from softmaxfree.layers.inference import is_plain_inference
from softmaxfree.ops import transforms

# of the pairs that inference holds at once: what caches hold, and what keeps a GPU busy
_CPU_PAIR_BYTES, _PAIR_BYTES = 1 << 24, 1 << 28


def in_rows(mix: Callable[[Tensor], Tensor], q: Tensor, k: Tensor) -> Tensor:
    """Mixes queries in inference a few at a time; only where they do not see each other.

    Args:
        mix: maps queries `(B, H, n, D)` to what they get `(B, H, n, E)`, any number `n` of them.
        q: all queries `(B, H, N, D)`.
        k: keys `(B, H, N, D)`.

    Returns:
        `mix(q)`.
    """
    if not is_plain_inference() or transforms.at_work() or q.numel() == 0:
        return mix(q)
    most = _CPU_PAIR_BYTES if q.device.type == "cpu" else _PAIR_BYTES
    rows = max(1, most // (4 * q.shape[0] * q.shape[1] * k.shape[2]))
    return mix(q) if rows >= q.shape[2] else torch.cat([mix(some) for some in q.split(rows, 2)], 2)
