"""Memory of a training step of the COCO recipes, and whether it grows over steps of varying sizes.

Examples:
    python benchmarks/detection_memory.py --out benchmarks/detection-memory-cpu.csv
    python benchmarks/detection_memory.py --growth 200 --out benchmarks/detection-growth-cpu.csv
"""

import argparse
import gc
import multiprocessing
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.atomic import write_csv
from softmaxfree.bench.memory import peak_bytes
from softmaxfree.machine import describe
from softmaxfree.models.detection import HEADS, Detector

_MIB = 2**20


def main() -> None:
    """Measure, and write a row after each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument(
        "--backbones", nargs="+", default=[f"soft_norm_{s}" for s in ("tiny", "small", "medium", "large")]
    )
    parser.add_argument("--checkpointing", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1333), help="height and width, pixels")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--growth", type=int, default=0, help="number of steps of small images of varying sizes")
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for row in _growth(args.growth, device) if args.growth else _steps(args, device):
        rows.append({**row, **describe(device)})
        print(row, flush=True)
        write_csv(args.out, rows)


def _steps(args: argparse.Namespace, device: torch.device) -> Any:
    height, width = args.size
    for head in args.heads:
        for backbone in args.backbones:
            for checkpointing in args.checkpointing:
                model = Detector(head, backbone, 80).to(device)
                model.set_grad_checkpointing(checkpointing == "on")
                step = _Step(model, [(height, width)] * args.batch_size, device)
                weights = sum(p.numel() * p.element_size() for p in model.parameters())
                start = time.perf_counter()
                peak = peak_bytes(step, device)
                yield {
                    "head": head,
                    "backbone": backbone,
                    "height": height,
                    "width": width,
                    "batch_size": args.batch_size,
                    "checkpointing": checkpointing,
                    "parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
                    "weights_mib": round(weights / _MIB),
                    # activations, gradients and the state of AdamW
                    "step_mib": round(peak / _MIB),
                    "total_mib": round((weights + peak) / _MIB),
                    "seconds": round(time.perf_counter() - start, 1),
                }
                del model, step
                gc.collect()


def _growth(count: int, device: torch.device) -> Any:
    """Yields the rows of two fresh processes, as oneDNN reads its setting when it is loaded."""
    for capacity in ("1024", "0"):  # as it comes, and nothing kept
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = capacity
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            for row in pool.submit(_grow, count, device).result():
                yield {"onednn_primitives_kept": capacity, **row}


def _grow(count: int, device: torch.device) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    rows = []
    sides = random.Random(0)
    model = Detector("mask_rcnn", "soft_nano", 3, fpn_channels=32).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for number in range(1, count + 1):
        sizes = [(sides.randint(64, 160), sides.randint(64, 160)) for _ in range(2)]
        _Step(model, sizes, device, optimizer)()
        if number % 10 == 0 or number == count:
            rows.append(
                {
                    "step": number,
                    "live_tensors_mib": round(_live_bytes() / _MIB, 3),
                    "resident_mib": round(_resident_bytes() / _MIB, 1),
                }
            )
    return rows


class _Step:
    """A training step on random images with a few boxes."""

    def __init__(
        self,
        model: Detector,
        sizes: list[tuple[int, int]],
        device: torch.device,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.images = [torch.rand(3, *size, device=device) for size in sizes]
        self.targets = [_target(*size, device) for size in sizes]

    def __call__(self) -> None:
        losses = self.model(self.images, self.targets)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _target(height: int, width: int, device: torch.device, count: int = 7) -> dict[str, torch.Tensor]:
    """As many objects as images of COCO have on average, a quarter of the sides large."""
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 0.7
    boxes = torch.cat([corner, corner + torch.tensor([width, height]) / 4], 1)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    made = {"boxes": boxes, "labels": torch.zeros(count, dtype=torch.long), "masks": masks}
    return {key: value.to(device) for key, value in made.items()}


def _live_bytes() -> int:
    """Of all tensors that something still holds: weights, optimizer, and what may have been forgotten."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    main()
