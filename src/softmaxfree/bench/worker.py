"""A contestant in a process of its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from softmaxfree.bench.memory import peak_bytes
from softmaxfree.bench.registry import SUITES
from softmaxfree.bench.trial import Trial
from softmaxfree.timing import Timer

__all__ = ["Worker"]


class Worker:
    """Runs a contestant elsewhere.

    In one process the times depended on who else was there: an allocator hands pages that one contestant gave back,
    still mapped, to the next, and adapts to the sizes it has seen.

    Args:
        suite: name of a suite.
        contestant: name of one of its contestants.
        device: CPU or CUDA.
        dtype: see `Trial`.
        compiled: see `Trial`.
    """

    def __init__(self, suite: str, contestant: str, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
        self._pool = ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            _start,
            (torch.get_num_threads(), suite, contestant, device, dtype, compiled),
        )

    def prepare(self, what: str, batch: int, size: int) -> None:
        """Makes the pass ready on inputs of a shape, in place of the one before."""
        self._call(_prepare, what, batch, size)

    def seconds(self, calls: int) -> float:
        """Returns the mean time of a call of the pass."""
        return self._call(_seconds, calls)

    def peak_bytes(self) -> int:
        """Returns the most memory that a call of the pass takes."""
        return self._call(_peak_bytes)

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown()

    def _call(self, function: Callable, *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result()


# in the process of the contestant
_trial: Trial
_step: Callable[[], object]


def _start(threads: int, suite: str, contestant: str, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
    global _trial
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both, and the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _trial = Trial(SUITES[suite], SUITES[suite].contestants[contestant], device, dtype, compiled)


def _end_with_parent() -> None:
    """A pool does not end its processes when its own is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _prepare(what: str, batch: int, size: int) -> None:
    global _step
    _step = _trial.prepare(what, batch, size)


def _seconds(calls: int) -> float:
    return Timer("step()", globals={"step": _step}, num_threads=torch.get_num_threads()).timeit(calls).mean


def _peak_bytes() -> int:
    return peak_bytes(_step, _trial.device)
