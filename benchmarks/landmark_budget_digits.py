r"""What a smaller landmark budget costs in accuracy, on digits resized large.

    softmaxfree train digits --data.img_size=128 --data.batch_size=32 --model.lr=3e-3 --model.warmup_epochs=0.3 \
        --trainer.max_epochs=3 --run.threads=2
    python benchmarks/landmark_budget_digits.py runs/digits/0/best

The model was trained with all its landmarks, 8x8 a stage; here it is measured with fewer.
Writes benchmarks/landmark-budget-digits-cpu.csv.
"""

import argparse
from pathlib import Path

import timm
import torch

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.atomic import write_csv
from softmaxfree.data import DigitsDataModule
from softmaxfree.machine import describe

SIZE = 128
SIDES = (8, 6, 4, 2, 1)  # landmarks a side


def main() -> None:
    """Measure, and write a row for each size and budget."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", help="the folder best/ of a run")
    weights = Path(parser.parse_args().weights).resolve()
    rows = []
    data = DigitsDataModule(img_size=SIZE, batch_size=50)
    data.prepare_data()
    data.setup("validate")
    for side in SIDES:
        model = timm.create_model(f"local-dir:{weights}", pretrained=True, landmark_grid=(side, side)).eval()
        with torch.inference_mode():
            right = torch.cat([(model(images).argmax(1) == labels) for images, labels in data.val_dataloader()])
        accuracy = round(right.float().mean().item(), 4)
        rows.append({"size": SIZE, "landmarks": side**2, "digits": len(right), "top1": accuracy})
        print(rows[-1], flush=True)
    about = describe(torch.device("cpu"))
    write_csv(Path(__file__).parent / "landmark-budget-digits-cpu.csv", [{**row, **about} for row in rows])


if __name__ == "__main__":
    main()
