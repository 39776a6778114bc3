"""When inference may take a shorter way than the one that modules describe."""

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["is_plain_inference", "is_seen"]


def is_plain_inference() -> bool:
    """Returns whether nothing is differentiated, compiled, exported or traced."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def is_seen(*modules: nn.Module) -> bool:
    """Returns whether hooks look at what goes in or comes out of one of these, or it has a `forward` of its own."""
    return _has_any_global_hook() or any(
        of._forward_hooks or of._forward_pre_hooks or "forward" in vars(of) for of in modules
    )
