"""How a segmenter trained at 256x256 does on larger images, with and without the symmetric normalisation.

    python benchmarks/resolution_transfer.py runs/normalized/0/best.ckpt runs/plain/0/best.ckpt

Each checkpoint is scored on the same digit scenes at several sizes: rendered at that size, and the 256x256 images
enlarged to it. Writes benchmarks/resolution-transfer-cpu.csv and docs/resolution_transfer.png.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from softmaxfree.atomic import atomic_write, write_csv
from softmaxfree.cli.recipe import create_trainer
from softmaxfree.data import ScenesSegmentationDataModule
from softmaxfree.machine import describe
from softmaxfree.tasks import SegmentationTask

ROOT = Path(__file__).parents[1]
TRAINED_AT = 256


def main() -> None:
    """Measure, write the table, draw it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", nargs="+", help="best.ckpt of runs of scenes_segmentation")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="pixels")
    parser.add_argument("--val", type=int, default=200, help="number of scenes")
    arguments = parser.parse_args()
    rows = []
    for checkpoint in arguments.checkpoints:
        task = SegmentationTask.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
        for size in arguments.sizes:
            rows.append(score(task, "rendered", size, scenes(size, arguments.val)))
            if size != TRAINED_AT:
                loader = scenes(TRAINED_AT, arguments.val, enlarged_to=size)
                rows.append(score(task, "enlarged", size, loader))
    write_csv(ROOT / "benchmarks" / "resolution-transfer-cpu.csv", rows)
    draw(rows, ROOT / "docs" / "resolution_transfer.png")


def scenes(size: int, count: int, enlarged_to: int | None = None) -> DataLoader:
    """Return a loader of validation scenes; labels of enlarged images keep their size, at which they are scored."""
    data = ScenesSegmentationDataModule(train=1, val=count, img_size=size, batch_size=4)
    data.prepare_data()
    data.setup("validate")
    loader = data.val_dataloader()
    if enlarged_to is None:
        return loader

    def enlarge(samples: list) -> Any:
        images, labels = data.collate_fn(samples)
        return [F.interpolate(x[None], size=(enlarged_to, enlarged_to), mode="bicubic")[0] for x in images], labels

    return DataLoader(loader.dataset, loader.batch_size, collate_fn=enlarge)


def score(task: SegmentationTask, images: str, size: int, loader: DataLoader) -> dict[str, Any]:
    """Return a row of the table."""
    trainer = create_trainer({"accelerator": "cpu", "logger": False, "enable_progress_bar": False})
    start = time.perf_counter()
    trainer.validate(task, loader, verbose=False)
    model_args = task.hparams["model_args"] or {}
    row = {
        "name": task.hparams["name"],
        "head": task.hparams["head"],
        "normalize": bool(model_args.get("normalize", "norm" in task.hparams["name"])),
        "trained_at": TRAINED_AT,
        "images": images,
        "size": size,
        "scenes": len(loader.dataset),  # type: ignore[arg-type]
        "miou": round(trainer.callback_metrics["val/miou"].item(), 4),
        "pixel_accuracy": round(trainer.callback_metrics["val/pixel_accuracy"].item(), 4),
        "seconds": round(time.perf_counter() - start, 1),
        **describe(torch.device("cpu")),
    }
    print(row, flush=True)
    return row


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw mIoU over the size, a panel for each kind of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, images in zip(figure.subplots(1, 2, sharey=True), ("rendered", "enlarged"), strict=True):
        for normalize in sorted({row["normalize"] for row in rows}, reverse=True):
            of_model = [row for row in rows if row["normalize"] == normalize]
            curve = [row for row in of_model if images == row["images"] or row["size"] == TRAINED_AT]
            label = "normalised (SOFT++)" if normalize else "not normalised (SOFT)"
            axes.plot([row["size"] for row in curve], [100 * row["miou"] for row in curve], "o-", label=label)
        title = "scenes rendered at the size" if images == "rendered" else "256x256 images enlarged to the size"
        axes.set(xscale="log", title=title, xlabel="image side, pixels", ylim=(0, None))
        axes.set_xticks(
            sorted({row["size"] for row in rows}), labels=sorted({row["size"] for row in rows}), minor=False
        )
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mIoU, %")
    figure.axes[0].legend()
    figure.suptitle(f"{rows[0]['name']}, {rows[0]['head']}, trained at {TRAINED_AT}x{TRAINED_AT}")
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110)


if __name__ == "__main__":
    main()
