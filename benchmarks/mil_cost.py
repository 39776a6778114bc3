"""Time and memory of the attention of bags, forward, against the package nystrom-attention where it is installed.

    python benchmarks/mil_cost.py --tokens 10000 20000 50000 100000 --out benchmarks/mil-cost-cpu.csv

One bag, 8 heads of width 64, 256 landmarks, float32, one thread, a fresh process for each point. `slope` is that of the
logarithm over the logarithm of the tokens, from the first number of tokens: 1 is linear.
"""

import argparse
import importlib.util
import math
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softmaxfree.atomic import write_csv
from softmaxfree.bench.memory import peak_bytes
from softmaxfree.machine import describe
from softmaxfree.mil import NystromAttention
from softmaxfree.mil.attention import SegmentAttention

HEADS, WIDTH, LANDMARKS = 8, 64, 256
_MIB = 2**20


class _Bag(nn.Module):
    """Gives a mixer its grid."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = SegmentAttention(HEADS * WIDTH, HEADS, num_landmarks=LANDMARKS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps tokens to tokens."""
        return self.mixer(x, [x.shape[1]])


def _layer(name: str) -> nn.Module:
    if name == "bag_encoder":
        return _Bag()
    own: dict[str, Any] = {"dim_head": WIDTH, "heads": HEADS, "num_landmarks": LANDMARKS}
    if name == "transmil":
        return NystromAttention(HEADS * WIDTH, **own)
    from nystrom_attention import NystromAttention as Package

    return Package(HEADS * WIDTH, **own)


def measure(name: str, tokens: int, repeats: int) -> dict[str, Any]:
    """Return a row of the table: medians of the time, and the most memory that lives at once beside input and weights.

    Args:
        name: of a layer.
        tokens: number of patches.
        repeats: how often time is taken.

    Returns:
        The row.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer, x = _layer(name).eval(), torch.randn(1, tokens, HEADS * WIDTH)
    seconds = []
    with torch.inference_mode():
        layer(x[:, :1000])  # libraries set themselves up
        for _ in range(repeats):
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
        peak = peak_bytes(lambda: layer(x), torch.device("cpu"))
    row = {"layer": name, "tokens": tokens, "seconds": round(statistics.median(seconds), 3), "peak_mib": peak / _MIB}
    return {**row, "repeats": repeats, **describe(torch.device("cpu"))}


def main() -> None:
    """Measure, and write the table after each point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layers = ["bag_encoder", "transmil"] + ["nystrom-attention"] * bool(importlib.util.find_spec("nystrom_attention"))
    parser.add_argument("--layers", nargs="+", choices=layers, default=layers)
    parser.add_argument("--tokens", nargs="+", type=int, default=[10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.layers:
        first: dict[str, Any] | None = None
        for tokens in args.tokens:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                row = pool.submit(measure, name, tokens, args.repeats).result()
            first = first or row
            slopes = {f"slope_{key}": _slope(first, row, key) for key in ("seconds", "peak_mib")}
            rows.append({**row, "peak_mib": round(row["peak_mib"], 1), **slopes})
            print(rows[-1], flush=True)
            write_csv(args.out, rows)


def _slope(first: dict[str, Any], row: dict[str, Any], key: str) -> str:
    growth = math.log(row["tokens"] / first["tokens"])
    return f"{math.log(row[key] / first[key]) / growth:.3f}" if growth else ""


if __name__ == "__main__":
    main()
