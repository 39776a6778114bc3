"""Several processes on one machine, for tests of what they compute together."""

import datetime
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(function: Callable[..., Any], count: int, *args: Any) -> list[Any]:
    """Returns what a function of a module returns in each of some processes, joined by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (count, folder, function, args), nprocs=count)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(count)]


def _run(rank: int, count: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    store = f"file://{folder}/store"
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=limit)
    try:
        torch.save(function(rank, *args), Path(folder) / str(rank))
    finally:
        dist.destroy_process_group()
