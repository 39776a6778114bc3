"""The precision every op computes in, whatever it is given and whatever autocast says."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64 and float32 for every narrower float."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """Returns `x` in the dtype that ops compute in; no copy when it has it already."""
    return x.to(compute_dtype(x.dtype))


def full_precision(x: Tensor) -> AbstractContextManager:
    """Returns a context in which autocast does not narrow the matrix products on `x`'s device."""
    if not torch.amp.is_autocast_available(x.device.type):  # the meta device
        return nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)
