"""Peak memory of a call: what the allocator handed out at its highest, beyond what was there before."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Returns the most bytes that lived at once on `device` during the call, without those of its inputs.

    On a CPU the allocations come from torch's profiler: exact and the same in each run, unlike the resident
    set of the process. Libraries below torch (MKL, LAPACK) keep small buffers of their own that do not count.

    Args:
        function: what to call; its result counts as long as it lives.
        device: CPU or CUDA.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent():
        recorded.start()
    try:
        result = function()
    finally:
        with _silent():
            recorded.stop()
    del result
    live, peak = 0, 0
    for change in _changes(recorded):
        live += change
        peak = max(peak, live)
    return peak


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps what torch's profiler writes of its begin and end, past Python, from the user."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _changes(recorded: profile) -> list[int]:
    """Returns every allocation (positive) and release (negative) in bytes, in order of time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    allocations = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    return [e["args"]["Bytes"] for e in allocations if e["args"]["Device Type"] == 0]
