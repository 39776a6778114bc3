"""Local contrast: each pixel relative to its surroundings, so that thin faint lines are as strong as dark regions."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from softmaxfree.ops.precision import widen

__all__ = ["local_contrast"]

_FLAT = 4e-3
"""Variance, in images of unit variance, below which surroundings are flat and their noise is not enlarged."""


@register_notrace_function
def local_contrast(x: Tensor, window: int, mask: Tensor | None = None) -> Tensor:
    """Subtracts the mean of each pixel's surroundings, and divides by the deviation from it there.

    Jarrett et al. 2009, section 2.1, with a square window, and each channel on its own.

    Args:
        x: images `(B, C, h, w)` of about unit variance, zero where `mask` is False.
        window: side of the surroundings, pixels; odd. Beyond the border there is nothing.
        mask: `(B, h, w)` bool, True where a pixel is valid: the others are in no window.

    Returns:
        `(B, C, h, w)` in the dtype of `x`, computed in float32 or wider; zero in the padding.
    """
    wide = widen(x)
    valid = None if mask is None else mask.unsqueeze(1).to(wide.dtype)
    share = None if valid is None else _mean(valid, window).clamp_min(torch.finfo(wide.dtype).tiny)
    rest = wide - _valid_mean(wide, window, share)
    rest = rest if valid is None else rest * valid
    return (rest * (_valid_mean(rest.square(), window, share) + _FLAT).rsqrt()).to(x.dtype)


def _valid_mean(x: Tensor, window: int, share: Tensor | None) -> Tensor:
    return _mean(x, window) if share is None else _mean(x, window) / share


def _mean(x: Tensor, window: int) -> Tensor:
    """Returns the mean over what of the window is in the image; rows and columns one after the other."""
    around = window // 2
    x = F.avg_pool2d(x, (window, 1), 1, (around, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, window), 1, (0, around), count_include_pad=False)
