"""A filter for each channel, in the precision in which it is fast."""

import torch
import torch.nn.functional as F
from torch import Tensor

from softmaxfree.ops.precision import full_precision


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves each channel with a filter of its own; sizes stay.

    On a CPU, where gradients are needed, it computes in float32 what is narrower, also under autocast: in bfloat16 the
    gradient of the filters takes oneDNN up to four times as long.

    Args:
        x: `(B, C, X)` or `(B, C, Y, X)`, any float dtype.
        weight: `(C, 1, K)` or `(C, 1, K, K)`.
        bias: `(C,)`.

    Returns:
        The shape of `x`, in the dtype that torch's convolution gives.
    """
    convolve = F.conv1d if x.ndim == 3 else F.conv2d
    autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    if x.device.type != "cpu" or not torch.is_grad_enabled() or dtype not in (torch.bfloat16, torch.float16):
        return convolve(x, weight, bias, padding="same", groups=x.shape[1])
    with full_precision(x):
        bias = None if bias is None else bias.float()
        return convolve(x.float(), weight.float(), bias, padding="same", groups=x.shape[1]).to(dtype)
