"""What a smaller landmark budget costs in accuracy, on digits resized large.

    softmaxfree train digits --data.img_size=128 --trainer.max_epochs=4 --run.threads=2
    python benchmarks/landmark_budget_digits.py runs/digits/0/best

The model was trained with all its landmarks, 8x8 a stage; here it is measured with fewer, and on images twice as large,
where it would have 16x16. Writes benchmarks/landmark-budget-digits-cpu.csv.
"""

import argparse
import csv
from pathlib import Path

import timm
import torch

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.atomic import atomic_write
from softmaxfree.bench.machine import describe
from softmaxfree.data import DigitsDataModule

BUDGETS = {128: (8, 6, 4, 3, 2, 1), 256: (16, 12, 8, 4, 2)}  # landmarks a side, by the size of the images


def main() -> None:
    """Measure, and write a row for each size and budget."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", help="the folder best/ of a run")
    weights = Path(parser.parse_args().weights).resolve()
    rows = []
    for size, sides in BUDGETS.items():
        data = DigitsDataModule(img_size=size, batch_size=50)
        data.prepare_data()
        data.setup("validate")
        for side in sides:
            model = timm.create_model(f"local-dir:{weights}", pretrained=True, landmark_grid=(side, side)).eval()
            with torch.inference_mode():
                right = [(model(images).argmax(1) == labels) for images, labels in data.val_dataloader()]
            accuracy = torch.cat(right).float().mean().item()
            rows.append({"size": size, "landmarks": side**2, "digits": len(torch.cat(right)), "top1": accuracy})
            print(rows[-1], flush=True)
    about = describe(torch.device("cpu"))
    with atomic_write(Path(__file__).parent / "landmark-budget-digits-cpu.csv") as part, part.open("w") as file:
        writer = csv.DictWriter(file, [*rows[0], *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "top1": round(row["top1"], 4), **about} for row in rows)


if __name__ == "__main__":
    main()
