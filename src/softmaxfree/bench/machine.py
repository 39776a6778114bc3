"""What a measurement depends on beside the code: processor, versions, commit. Never the name of a host."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import timm
import torch

from softmaxfree.version import __version__


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the columns of a result that are the same for a whole run.

    Args:
        device: where it runs; of a GPU its name is given, of a CPU its model.

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


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str:
    """Returns the commit of the source tree, with `+` when it was changed; empty outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
