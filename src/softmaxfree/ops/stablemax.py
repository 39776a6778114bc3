"""StableMax: probabilities without exponentials (Prieto et al., arXiv 2501.04697, eq. 7)."""

import torch
from torch import Tensor

from softmaxfree.ops.precision import widen


def stablemax_logits(x: Tensor) -> Tensor:
    """Returns the logarithm of `s(x)`, `x + 1` from 0 on and `1 / (1 - x)` below, `sign(x) ln(1 + |x|)`.

    StableMax, `s(x) / sum s(x)`, is softmax of it, and cross-entropy with StableMax is that of these logits. It is not
    invariant to a shift of `x`.

    Args:
        x: any shape, any float dtype.

    Returns:
        The same shape; float32, or float64 for float64.
    """
    x = widen(x)
    sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)  # torch's own sign and abs have no slope at 0
    return sign * torch.log1p(sign * x)
