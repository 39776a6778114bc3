"""What a measurement depends on beside the code: processor, versions, commit. Never the name of a host."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch

from softmaxfree.version import __version__

__all__ = ["BFLOAT16_IS_EMULATED", "describe", "has_fast_bfloat16", "machine"]

BFLOAT16_IS_EMULATED = "this device has no instructions that multiply bfloat16"
"""Why it is slow."""


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the columns of a result that are the same for a whole run.

    Args:
        device: where it runs; of a GPU its name is given, of a CPU its model and instructions.

    Returns:
        Column names and values.
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "softmaxfree": __version__,
        "commit": _commit(),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Returns what `describe` says, and what else a training depends on.

    Args:
        device: where it runs.

    Returns:
        Those columns, and `cpu`, `cores` (that this process may use), `memory_gib`, `device_memory_gib` (of a GPU, else
        None), `lightning` and `python`.
    """
    import psutil  # imported late: the benchmarks of single layers do without the training stack

    cuda = device.type == "cuda"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **describe(device),
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device_memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if cuda else None,
        "lightning": metadata.version("lightning"),
        "python": platform.python_version(),
    }


def has_fast_bfloat16(device: torch.device) -> bool:
    """Returns whether a device multiplies bfloat16 itself; where it is emulated, it is slower than float32.

    Args:
        device: of the computation.

    Returns:
        Whether it does; False where torch does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine() in ("x86_64", "AMD64"):  # where torch's own answer counts AVX-512 without bfloat16 too
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    # one name may stand for processors of which one multiplies several times faster
    able = [torch.backends.cpu.get_cpu_capability(), *(["bfloat16"] if has_fast_bfloat16(torch.device("cpu")) else [])]
    return f"{models[0] if models else platform.processor() or platform.machine()} ({', '.join(able)})"


def _commit() -> str:
    """Returns the commit of the source tree, with `+` when it was changed; empty outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", ":/src"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
