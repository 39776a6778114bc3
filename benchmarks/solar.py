"""Runs of the recipe solar_cells, of any seed or model, in one table of all their epochs.

    python benchmarks/solar.py runs/solar_cells/0 runs/solar_cells/1 ...

Reads what `softmaxfree train` left in each folder. Writes benchmarks/solar-cpu.csv.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from softmaxfree.atomic import write_csv
from softmaxfree.machine import describe


def main() -> None:
    """Read and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    rows = [row for run in parser.parse_args().runs for row in epochs(run)]
    write_csv(Path(__file__).parent / "solar-cpu.csv", rows)


def epochs(run: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each epoch of a run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    torch.set_num_threads(config["run"]["threads"])
    about = describe(torch.device("cpu"))
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield {
                "model": config["model"]["name"],
                "seed": config["run"]["seed"],
                "precision": config["trainer"]["precision"] or "32-true",
                "epoch": int(row["epoch"]) + 1,
                "step": row["step"],
                "seconds": row["seconds"],
                "train_loss": row["train/loss"],
                "val_loss": row.get("val/loss", ""),
                "top1": row.get("val/top1", ""),
                **about,
            }


if __name__ == "__main__":
    main()
