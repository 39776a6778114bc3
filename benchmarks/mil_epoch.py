r"""One epoch on slides of 20,000 patches from HDF5 files as TRIDENT writes them: time, and the most memory.

    python benchmarks/mil_epoch.py
    python benchmarks/mil_epoch.py --slides 5

The features are random: float16, 1,024 numbers a patch, a chunk a patch, on a lattice without corners. They go to a
temporary folder, 42 MB a slide, and are deleted at the end. Each network trains in a process of its own, with batches
of one bag. Memory is the proportional set size of that process and its workers, every 20 ms. `reading` is an epoch of
the loader alone. Writes benchmarks/mil-epoch-cpu.csv; rows of the same network, slides and workers are replaced.
"""

import argparse
import csv
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import torch
from lightning.pytorch import Trainer

from softmaxfree.atomic import write_csv
from softmaxfree.machine import describe
from softmaxfree.mil.data import BagsDataModule
from softmaxfree.mil.tasks import BagClassificationTask

OUTPUT = Path(__file__).parent / "mil-epoch-cpu.csv"
READING = "reading"
KEYS = ("network", "slides", "patches", "workers", "threads")
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def main() -> None:
    """Write the slides, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=[READING, "gated_attention", "transmil", "bag_encoder"])
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--patches", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # network and folder, in a process of its own
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], Path(given.one[1]), given.workers)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        begin = time.perf_counter()
        write_slides(Path(folder), given.slides, given.patches)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.h5"))
        print(f"{given.slides} slides, {size / 1e9:.2f} GB, written in {time.perf_counter() - begin:.0f} s", flush=True)
        for network in given.networks:
            own = ["--one", network, folder, "--workers", str(given.workers)]
            done = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            told = {"slides": given.slides, "patches": given.patches, "workers": given.workers}
            row = {"network": network, **told, **json.loads(done.stdout.splitlines()[-1])}
            print(row, flush=True)
            keep(row)


def write_slides(folder: Path, slides: int, patches: int) -> None:
    """Write features and labels."""
    (folder / "features").mkdir()
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((patches, 1024), dtype=np.float32).astype(np.float16)
    side = int(np.ceil(np.sqrt(patches / 0.8)))
    places = np.stack(np.divmod(np.arange(side**2), side)[::-1], 1)
    inside = np.argsort(((places - side / 2) ** 2).sum(1), kind="stable")[:patches]  # a disc of tissue
    coords = places[np.sort(inside)].astype(np.int64) * 512
    told = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    told |= {"overlap": 0, "level0_width": side * 512, "level0_height": side * 512}
    rows = ["slide_id,label"]
    for i in range(slides):
        with h5py.File(folder / "features" / f"{i:03}.h5", "w") as file:
            for key, values in (("features", np.roll(pool, 97 * i, 0)), ("coords", coords)):
                chunk = (1, *values.shape[1:])
                file.create_dataset(key, data=values, maxshape=(None, *values.shape[1:]), chunks=chunk)
            file["coords"].attrs.update(told)
        rows.append(f"{i:03},{'ab'[i % 2]}")
    split = [f"{i:03},{'val' if i < 2 else 'train'}" for i in range(slides)]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "split.csv").write_text("\n".join(["slide_id,split", *split]) + "\n", encoding="utf-8")


def measure(network: str, folder: Path, workers: int) -> dict[str, Any]:
    """Return the seconds of an epoch, and memory in MiB: at its begin, the most, and that of one bag."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    places = {"features": str(folder / "features"), "labels": str(folder / "labels.csv")}
    data = BagsDataModule(**places, split=str(folder / "split.csv"), num_workers=workers)
    begin = time.perf_counter()
    data.setup("fit")
    looking = time.perf_counter() - begin
    bag = data.bags["train"].slides[0].features.shape
    if network == READING:
        loader = data.train_dataloader()

        def run() -> None:
            for _ in loader:
                pass
    else:
        task = BagClassificationTask(network, 2, data.in_dim, opt="adam", lr=1e-4, warmup_epochs=0)
        trainer = Trainer(max_epochs=1, limit_val_batches=0, accelerator="cpu", enable_model_summary=False, **QUIET)

        def run() -> None:
            trainer.fit(task, datamodule=data)

    with Memory() as memory:
        begin = time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
    trained = len(data.bags["train"])
    return {
        "trained_slides": trained,
        "looking_s": round(looking, 2),
        "epoch_s": round(seconds, 1),
        "s_per_slide": round(seconds / trained, 3),
        "begin_mib": round(memory.begin / 2**20),
        "peak_mib": round(memory.peak / 2**20),
        "bag_mib": round(2 * bag[0] * bag[1] / 2**20),
        **describe(torch.device("cpu")),
    }


class Memory:
    """Watches the memory of this process and its children while it is entered."""

    def __enter__(self) -> "Memory":
        self.begin = self.peak = self._now()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.wait(0.02):
            self.peak = max(self.peak, self._now())

    def _now(self) -> int:
        own = psutil.Process()
        total = 0
        for process in [own, *own.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
                continue
        return total


def keep(row: dict[str, Any]) -> None:
    """Put a row into the table."""
    rows: list[dict[str, Any]] = []
    if OUTPUT.exists():
        with OUTPUT.open(newline="", encoding="utf-8") as file:
            rows = [other for other in csv.DictReader(file) if any(other[key] != str(row[key]) for key in KEYS)]
    write_csv(OUTPUT, [*rows, row])


if __name__ == "__main__":
    main()
