"""Latency of one model in four ways: eager, torch.compile, ONNX in onnxruntime, a package of AOTInductor.

    python benchmarks/export.py [--models soft_nano soft_tiny] [--pixels 224 512] [--out benchmarks/export-cpu.csv]

Each file is compared with the model at three sizes before it is timed. One image at a time, the four ways in turns;
random weights.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.atomic import write_csv
from softmaxfree.export import export
from softmaxfree.export.formats import format_of, load
from softmaxfree.machine import describe

ROOT = Path(__file__).parents[1]
CONFIG = {"input_size": (3, 224, 224), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def main() -> None:
    """Measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["soft_nano", "soft_tiny"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[224, 512])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "export-cpu.csv")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = timm.create_model(name).eval()
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
            runs, told = {}, {}
            for runtime, make in ways(model, Path(folder)).items():
                began = time.perf_counter()
                runs[runtime], difference = make()
                prepared = f"{time.perf_counter() - began:.0f}"
                told[runtime] = {"largest_difference": difference, "prepared_s": prepared}
                print(name, runtime, told[runtime], flush=True)
            for pixels in arguments.pixels:
                for runtime, times in in_turns(runs, pixels, arguments.repeats).items():
                    row = {
                        "model": name,
                        "pixels": pixels,
                        "runtime": runtime,
                        "median_ms": f"{statistics.median(times):.2f}",
                        **told[runtime],
                        "onnxruntime": metadata.version("onnxruntime"),
                        **describe(torch.device("cpu")),
                    }
                    print(row, flush=True)
                    rows.append(row)
            write_csv(arguments.out, rows)


def ways(model: Any, folder: Path) -> dict[str, Callable[[], tuple[Callable, str]]]:
    """Return what makes a function of an image, and how far that was from the model; by the name of the way."""

    def of_file(name: str) -> tuple[Callable, str]:
        done = export(model, folder / name, CONFIG)
        run = load(folder / name, format_of(folder / name))
        return run, f"{max(each.value for each in done.differences):.1e}"

    return {
        "eager": lambda: (model, ""),
        "torch.compile": lambda: (torch.compile(model, dynamic=False), ""),
        "ONNX": lambda: of_file("model.onnx"),
        "AOTInductor": lambda: of_file("model.aoti.pt2"),
    }


def in_turns(runs: dict[str, Callable], pixels: int, repeats: int) -> dict[str, list[float]]:
    """Return milliseconds of each way, after three rounds that do not count."""
    x = torch.randn(1, 3, pixels, pixels)
    times: dict[str, list[float]] = {runtime: [] for runtime in runs}
    for _ in range(repeats + 3):
        for runtime, run in runs.items():
            began = time.perf_counter()
            run(x)
            times[runtime].append(1000 * (time.perf_counter() - began))
    return {runtime: own[3:] for runtime, own in times.items()}


if __name__ == "__main__":
    main()
