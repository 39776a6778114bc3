"""What fresh memory costs: inference when the C library returns freed memory to the system, and when it keeps it.

    python benchmarks/freed_memory.py

Contestants run in turns, each in a process of its own. Writes benchmarks/freed-memory-cpu.csv.
"""

import argparse
import os
import platform
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from unittest import mock

import torch

from softmaxfree.atomic import write_csv
from softmaxfree.bench.registry import FORWARD
from softmaxfree.bench.worker import Worker
from softmaxfree.machine import describe

OUTPUT = Path(__file__).parent / "freed-memory-cpu.csv"
# read by glibc when a process starts
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "67108864"}
FREED = {"returned": {}, "kept": KEPT}


def main() -> None:
    """Measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["soft_tiny", "pvt_v2_b1"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448, 896], help="pixels a side")
    parser.add_argument("--turns", type=int, default=8)
    arguments = parser.parse_args()
    if platform.libc_ver()[0] != "glibc":
        sys.exit("the variables are of glibc, which this Python does not use")
    with ExitStack() as stack:
        workers = {}
        for model in arguments.models:
            for freed, variables in FREED.items():
                with mock.patch.dict(os.environ, variables):
                    worker = Worker("model", model, torch.device("cpu"), torch.float32, compiled=False)
                    workers[model, freed] = stack.enter_context(closing(worker))
                    worker.prepare(FORWARD, 1, arguments.sizes[0])  # starts the process
        rows = []
        for size in arguments.sizes:
            rows += measure(workers, size, arguments.turns)
            write_csv(OUTPUT, rows)


def measure(workers: dict[tuple[str, str], Worker], size: int, turns: int) -> list[dict]:
    """Return a row for each model and what becomes of freed memory."""
    for worker in workers.values():
        worker.prepare(FORWARD, 1, size)
    times = {key: [] for key in workers}
    for _ in range(turns):
        for key, worker in workers.items():
            times[key].append(worker.seconds(1) * 1e3)
    rows = []
    for (model, freed), measured in times.items():
        figures = {"median_ms": round(median(measured), 1), "fastest_ms": round(min(measured), 1), "turns": turns}
        rows.append({"model": model, "pixels": size, "freed_memory": freed, **figures, **describe(torch.device("cpu"))})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
