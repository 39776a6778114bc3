"""Runs of the scenes recipes side by side: one table of all epochs, one picture of the learning curves.

    python benchmarks/scenes.py runs/scenes_detection/0 runs/scenes_detection_pvt/0 ...

Reads what `softmaxfree train` left in each folder. Writes benchmarks/scenes-cpu.csv and docs/scenes_curves.png.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
import yaml

from softmaxfree.atomic import atomic_write, write_csv
from softmaxfree.machine import describe

ROOT = Path(__file__).parents[1]
METRICS = {
    "box_ap50": "val/map50",
    "box_ap": "val/map",
    "mask_ap50": "val/segm_map50",
    "mask_ap": "val/segm_map",
    "miou": "val/miou",
    "pixel_accuracy": "val/pixel_accuracy",
}
TARGETS = {"RetinaNet": ("box_ap50", 80), "Mask R-CNN": ("mask_ap50", 75), "segmentation": ("miou", 75)}
HEADS = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN", "upernet": "UPerNet"}


def main() -> None:
    """Read, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, ours first")
    rows = [row for run in parser.parse_args().runs for row in epochs(run)]
    write_csv(ROOT / "benchmarks" / "scenes-cpu.csv", rows)
    draw(rows, ROOT / "docs" / "scenes_curves.png")


def epochs(run: Path) -> list[dict[str, Any]]:
    """Return a row for each epoch of a run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    model = config["model"]
    weights = torch.load(run / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    count = sum(w.numel() for name, w in weights.items() if name.startswith("model.") and "running_" not in name)
    torch.set_num_threads(config["run"]["threads"])
    about = describe(torch.device("cpu"))
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {
                "head": HEADS.get(model["head"], model["head"]),
                "backbone": model["name"],
                "normalize": (model["model_args"] or {}).get("normalize", ""),
                "parameters_m": round(count / 1e6, 2),
                "seed": config["run"]["seed"],
                "precision": config["trainer"]["precision"] or "32-true",
                "epoch": int(row["epoch"]) + 1,
                "step": row["step"],
                "batch_size": config["data"]["batch_size"],
                "seconds": row["seconds"],
                "train_loss": row["train/loss"],
                **{name: row.get(column, "") for name, column in METRICS.items()},
                **about,
            }
            for row in csv.DictReader(file)
        ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the score of each epoch over the images of training, a panel for each task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, (task, (metric, target)) in zip(figure.subplots(1, 3, sharey=True), TARGETS.items(), strict=True):
        ours = [row for row in rows if row["head"] == task or (task == "segmentation" and row["miou"] != "")]
        for name, normalize in dict.fromkeys((row["backbone"], row["normalize"]) for row in ours):
            curve = [row for row in ours if (row["backbone"], row["normalize"]) == (name, normalize)]
            scored = [(int(row["step"]) * row["batch_size"], 100 * float(row[metric])) for row in curve if row[metric]]
            label = f"{name}, not normalised" if normalize is False else name
            axes.plot(*zip(*scored, strict=True), "o-", label=f"{label} ({curve[0]['parameters_m']:.1f}M)")
        axes.axhline(target, color="grey", linestyle=":")
        names = {"box_ap50": "box AP50", "mask_ap50": "mask AP50", "miou": "mIoU"}
        axes.set(title=f"{ours[0]['head']}: {names[metric]}, %", xlabel="images seen in training")
        axes.set(xlim=(0, None), ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110, format="png")


if __name__ == "__main__":
    main()
