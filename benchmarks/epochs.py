"""Runs of a recipe, of any seed or model, in one table of all their epochs.

    python benchmarks/epochs.py runs/solar_cells/0 runs/solar_cells/1 --out benchmarks/solar-cpu.csv
    python benchmarks/epochs.py runs/earth/0 --out benchmarks/earth-training-cpu.csv

Reads what `softmaxfree train` left in each folder, machine and commit too. Scores of classes are of the best epoch.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from softmaxfree.atomic import write_csv

MACHINE = ("device", "threads", "torch", "timm", "softmaxfree", "commit")


def main() -> None:
    """Read and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    given = parser.parse_args()
    write_csv(given.out, [row for run in given.runs for row in epochs(run)])


def epochs(run: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each epoch of a run."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    names = summary["data"]["class_names"]
    for row in summary["epochs"]:
        best = row["epoch"] + 1 == summary["best_epoch"]
        yield {
            "model": summary["model"]["name"],
            "seed": config["run"]["seed"],
            "precision": config["trainer"]["precision"] or "32-true",
            "epoch": row["epoch"] + 1,
            "step": row["step"],
            "seconds": row["seconds"],
            "train_loss": row["train/loss"],
            "val_loss": row.get("val/loss", ""),
            **{
                key.removeprefix("val/"): value
                for key, value in row.items()
                if key.startswith("val/") and key != "val/loss"
            },
            **{
                f"{score}_{name}": values[i] if best else ""
                for score, values in summary["class_scores"].items()
                for i, name in enumerate(names)
            },
            **{key: summary["machine"][key] for key in MACHINE},
        }


if __name__ == "__main__":
    main()
