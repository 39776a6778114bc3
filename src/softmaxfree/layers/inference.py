"""When inference may take a shorter way than the one that modules describe."""

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["is_fixed_norm", "is_plain_conv", "is_plain_inference", "is_seen", "narrowed"]

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)


def is_plain_inference() -> bool:
    """Returns whether nothing is differentiated, compiled, exported or traced."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def narrowed(x: Tensor) -> Tensor:
    """Returns positions as they are added to tokens: in bfloat16 in inference under its autocast on a CPU.

    The tokens then stay in bfloat16 through all blocks of a stage. In float32, each layer would narrow them again.
    """
    narrow = x.dtype is torch.float32 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if narrow and torch.get_autocast_dtype("cpu") is torch.bfloat16 and is_plain_inference():
        return x.to(torch.bfloat16)
    return x


def is_seen(*modules: nn.Module) -> bool:
    """Returns whether hooks look at what goes in or comes out of one of these, or it has a `forward` of its own."""
    return _has_any_global_hook() or any(
        of._forward_hooks or of._forward_pre_hooks or "forward" in vars(of) for of in modules
    )


def is_plain_conv(conv: nn.Module, side: int = 3) -> bool:
    """Returns whether a convolution, and not one put in its place, needs zeros around a map and nothing else."""
    if type(conv) is not nn.Conv2d or "_conv_forward" in vars(conv):
        return False
    around = side // 2
    own = conv.kernel_size, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    return own == ((side, side), (around, around), (1, 1), 1, "zeros")


def is_fixed_norm(norm: nn.Module) -> bool:
    """Returns whether a batch norm treats each cell alike, whatever else is in the map."""
    return type(norm) in _BATCH_NORMS and not norm.training and norm.running_mean is not None
