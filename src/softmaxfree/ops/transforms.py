"""Whether derivatives or batches are taken of what runs: those of `torch.func`, and forward-mode derivatives."""

import torch
from torch.autograd import forward_ad


def forward_of_forward() -> bool:
    """Returns whether a forward-mode derivative is taken of a forward-mode derivative."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1


def at_work() -> bool:
    """Returns whether a transform is at work, which needs plain torch operations: it cannot see into our ops."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
