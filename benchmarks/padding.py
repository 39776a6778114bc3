"""What a batch does to an image in it: results of trained models for images of many sizes, alone and together.

    python benchmarks/padding.py runs/scenes_detection/0 runs/scenes_instances/0 runs/scenes_segmentation/0 ...

Each run's best weights see the same held-out digit scenes, cut to different sizes. Writes benchmarks/padding-cpu.csv.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torchvision.ops import box_iou

from softmaxfree.atomic import write_csv
from softmaxfree.data import ScenesDetectionDataModule
from softmaxfree.machine import describe
from softmaxfree.tasks import DetectionTask, SegmentationTask

ROOT = Path(__file__).parents[1]
CONFIDENT = 0.5  # score of the objects that are compared
SHORTEST = 128  # pixels


def main() -> None:
    """Measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    images = scenes(arguments.images)
    batches = [images[i : i + arguments.batch_size] for i in range(0, len(images), arguments.batch_size)]
    rows = []
    for run in arguments.runs:
        config = yaml.safe_load((run / "config.yaml").read_text())
        kind = DetectionTask if config["task"].endswith("DetectionTask") else SegmentationTask
        task = kind.load_from_checkpoint(run / "best.ckpt", map_location="cpu", weights_only=True).eval()
        with torch.inference_mode():
            together = [result for batch in batches for result in task(batch)]
            alone = [task([image])[0] for image in images]
        row = {
            "head": config["model"]["head"],
            "backbone": config["model"]["name"],
            "images": len(images),
            "batch_size": arguments.batch_size,
            **(compare_objects if kind is DetectionTask else compare_pixels)(alone, together),
            **describe(torch.device("cpu")),
        }
        print(row, flush=True)
        rows.append(row)
    keys = dict.fromkeys(key for row in rows for key in row)
    write_csv(ROOT / "benchmarks" / "padding-cpu.csv", [{key: row.get(key, "") for key in keys} for row in rows])


def scenes(count: int) -> list[Tensor]:
    """Return held-out scenes, each cut to a size of its own, `(3, height, width)` in [0, 1]."""
    data = ScenesDetectionDataModule(train=1, val=count)
    data.prepare_data()
    data.setup("validate")
    sizes = random.Random(0)
    images = [image for batch, _ in data.val_dataloader() for image in batch]
    return [image[:, : sizes.randint(SHORTEST, 256), : sizes.randint(SHORTEST, 256)] for image in images]


def compare_objects(alone: list[dict[str, Tensor]], together: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Return how well the objects found in images alone are found again in the batch."""
    objects, lost, worst_iou, worst_score, worst_mask = 0, 0, 1.0, 0.0, 0.0
    for ours, theirs in zip(alone, together, strict=True):
        for i in (ours["scores"] > CONFIDENT).nonzero().flatten().tolist():
            objects += 1
            same = (theirs["labels"] == ours["labels"][i]).nonzero().flatten()
            overlaps = box_iou(ours["boxes"][i : i + 1].double(), theirs["boxes"][same].double())[0]
            if not len(same) or overlaps.max() < 0.5:
                lost += 1
                continue
            match = same[overlaps.argmax()]
            worst_iou = min(worst_iou, overlaps.max().item())
            worst_score = max(worst_score, (ours["scores"][i] - theirs["scores"][match]).abs().item())
            if "masks" in ours:
                pair = ours["masks"][i] > 0.5, theirs["masks"][match] > 0.5
                worst_mask = max(worst_mask, ((pair[0] != pair[1]).sum() / pair[0].sum().clamp_min(1)).item())
    scores = {"worst_iou": f"{worst_iou:.7f}", "largest_score_difference": f"{worst_score:.1e}"}
    masks = {"largest_mask_difference": f"{worst_mask:.1e}"} if "masks" in alone[0] else {}
    return {"objects": objects, "lost": lost, **scores, **masks}


def compare_pixels(alone: list[Tensor], together: list[Tensor]) -> dict[str, Any]:
    """Return how far logits move, and how many pixels change their class."""
    pairs = list(zip(alone, together, strict=True))
    largest = max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
    changed = sum(int((a.argmax(0) != b.argmax(0)).sum()) for a, b in pairs) / sum(a[0].numel() for a in alone)
    return {"largest_logit_difference": f"{largest:.1e}", "pixels_changed": f"{changed:.1e}"}


if __name__ == "__main__":
    main()
