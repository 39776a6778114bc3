"""What the Triton implementations need of a machine. Triton itself is imported by the first kernel that runs."""

import functools
import importlib.util
from contextlib import AbstractContextManager, nullcontext

import torch


def not_supported_reasons(device: torch.device) -> list[str]:
    """Returns why no Triton kernel can run on `device`; empty when one can."""
    if device.type not in ("cuda", "xpu"):
        return [f"needs a GPU that Triton compiles for, got {device.type}"]
    return [] if _has_triton() else ["Triton is not installed"]


def current(device: torch.device) -> AbstractContextManager:
    """Returns a context in which kernels are launched on `device`; nothing to do under the interpreter."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
