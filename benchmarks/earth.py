"""The relief of the Earth, 58 megapixels, in one pass and in windows: time, memory, IoU of each class, seams.

    python benchmarks/earth.py runs/earth/0/best.ckpt

Each contestant runs in a process of its own, one at a time, the smallest picture first, up to a limit of memory and of
processor time. Windows are squares of 512 pixels, or strips of that width from pole to pole, as in training. IoU is
that on the eastern half, which was not trained on. Seams are pairs of pixels on both sides of a border between windows
that get two classes from the windows, and one from the pass over the whole picture.
Writes benchmarks/earth-cpu.csv and docs/earth.png.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from softmaxfree.atomic import write_csv
from softmaxfree.data.earth_labels import CLASS_NAMES, HEIGHT, read_earth
from softmaxfree.machine import describe
from softmaxfree.models.segmentation import Segmenter
from softmaxfree.tasks.loading import load_task

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "benchmarks" / "earth-cpu.csv"
GIB = 2**30
WINDOW = 512
TRAINED, DEFAULT, PVT, VIT = "soft_nano", "soft_nano, default head", "pvt_v2_b0", "vit_tiny_patch16_224, no head"


def main() -> None:
    """Measure, and write the table after each row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="of the recipe earth")
    parser.add_argument("--heights", type=int, nargs="+", default=[675, 1350, 2700, HEIGHT], help="of the picture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=float, default=20, help="limit of the address space, GiB")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="CSV file")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "earth.png")
    parser.add_argument("--seconds", type=int, default=600, help="limit of the processor time")
    parser.add_argument(
        "--one", nargs=5, metavar=("NETWORK", "HEIGHT", "WINDOW", "STRIDE", "FILE"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(one(args.checkpoint, args.one[0], *map(int, args.one[1:4]), Path(args.one[4]))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.npy"
        full = max(args.heights)
        windows = [(0, 0), (full, WINDOW), (WINDOW, WINDOW), (WINDOW, WINDOW * 2 // 3)]
        tasks = [(TRAINED, full, *window) for window in windows]
        tasks += [(network, height, 0, 0) for network in (DEFAULT, PVT, VIT) for height in args.heights]
        for network, height, window, stride in tasks:
            if any(row["network"] == network and row["stopped_by"] for row in rows):
                continue  # it stopped at a smaller picture
            classes = whole if (network, stride) == (TRAINED, 0) else Path(folder) / "classes.npy"
            row = {"network": network, "weights": "trained" if network == TRAINED else "random"}
            row |= {
                "height": height,
                "width": 2 * height,
                "window": f"{window}x{WINDOW}" if stride else "",
                "stride": stride or "",
            }
            row |= run(args, network, height, window, stride, classes)
            row |= scores(classes, whole, window, stride) if network == TRAINED and not row["stopped_by"] else {}
            rows.append({**row, **describe(torch.device("cpu"))})
            print(row, flush=True)
            write_csv(args.out, [{**dict.fromkeys(key for row in rows for key in row), **row} for row in rows])
        draw(np.load(whole), args.picture)


def run(args: argparse.Namespace, network: str, height: int, window: int, stride: int, classes: Path) -> dict[str, Any]:
    """Return what a fresh process measured, or what stopped it."""
    space = round(args.memory * GIB)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CPU, (args.seconds, args.seconds))

    command = [sys.executable, __file__, str(args.checkpoint), "--threads", str(args.threads)]
    command += ["--one", network, str(height), str(window), str(stride), str(classes)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    if done.returncode == 0:
        return {**json.loads(done.stdout.splitlines()[-1]), "stopped_by": ""}
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        why = f"{args.seconds} s of processor time"
    elif "alloc" in done.stderr or "MemoryError" in done.stderr:
        why = f"{args.memory:g} GiB"
    else:
        raise RuntimeError(done.stderr)
    return {**dict.fromkeys(("parameters_m", "seconds", "processor_seconds", "peak_gib"), ""), "stopped_by": why}


def one(checkpoint: Path, network: str, height: int, rows: int, stride: int, file: Path) -> dict[str, Any]:
    """Return time and memory of one pass, whose classes are left in a file."""
    relief = read_earth(height)[0]
    image = torch.tensor(relief).permute(2, 0, 1)
    torch.manual_seed(0)
    model: Any
    if network == VIT:
        size = [-(-side // 16) * 16 for side in relief.shape[:2]]
        model = timm.create_model(VIT.partition(",")[0], dynamic_img_size=True, num_classes=0).eval()
        padded = torch.zeros(1, 3, *size)
        padded[0, :, :height, : 2 * height] = image / 255
        image = padded
    elif network == TRAINED:
        model = load_task(checkpoint)[0].model.eval()
    else:
        model = Segmenter("semantic_fpn", network.partition(",")[0], len(CLASS_NAMES)).eval()
    window, step = ((rows, WINDOW), (min(rows, stride) if rows == WINDOW else rows, stride)) if stride else (None, None)
    start, used = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        out = model.forward_features(image) if network == VIT else model.predict_classes(image, window, step)
    measured = {
        "parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - used, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    np.save(file, out.numpy())
    return measured


def scores(classes: Path, whole: Path, window: int, stride: int) -> dict[str, Any]:
    """Return the IoU of each class on the eastern half, and the seams."""
    found = np.load(classes)
    height = len(found)
    pairs = read_earth(height)[1][:, height:].astype(np.int64) * len(CLASS_NAMES) + found[:, height:]
    table = np.bincount(pairs.ravel(), minlength=len(CLASS_NAMES) ** 2).reshape(len(CLASS_NAMES), -1)
    iou = np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table))
    row: dict[str, Any] = {f"iou_{name}": round(float(i), 4) for name, i in zip(CLASS_NAMES, iou, strict=True)}
    if stride:
        row |= seams(found, np.load(whole), window, stride)
    return row


def seams(found: np.ndarray, whole: np.ndarray, window: int, stride: int) -> dict[str, Any]:
    """Return how many pairs of pixels along the borders of windows are torn apart, and how many there are."""
    torn = pairs = 0
    for axis, size in enumerate(found.shape):
        if axis == 0 and window == size:
            continue
        starts = [min(i * stride, size - WINDOW) for i in range(-(-(size - WINDOW) // stride) + 1)]
        for border in sorted({*starts[1:], *(start + WINDOW for start in starts[:-1])}):
            sides = [np.take(picture, (border - 1, border), axis) for picture in (found, whole)]
            ours, one_pass = (np.diff(side.astype(np.int8), axis=axis) != 0 for side in sides)
            torn += int((ours & ~one_pass).sum())
            pairs += ours.size
    return {"seams": torn, "border_pairs": pairs}


def draw(found: np.ndarray, path: Path) -> None:
    """Draw relief, labels and prediction of a part of the eastern half, side by side."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from softmaxfree.atomic import atomic_write

    relief, labels = read_earth(len(found))
    west, east, south, north = 24, 58, -14, 8  # the lakes of East Africa, in degrees
    per_degree = len(found) / 180
    part = (
        slice(round((90 - north) * per_degree), round((90 - south) * per_degree)),
        slice(round((180 + west) * per_degree), round((180 + east) * per_degree)),
    )
    colours = ListedColormap(["#9ec5e8", "#d9cfae", "#1f4e9e", "#ffffff"])
    figure = Figure(figsize=(12, 3.1), layout="constrained")
    titles = ("relief", "labels", "prediction, the whole Earth in one pass")
    for axes, title, picture in zip(figure.subplots(1, 3), titles, (relief, labels, found), strict=True):
        options = {} if picture is relief else {"cmap": colours, "vmin": -0.5, "vmax": 3.5, "interpolation": "nearest"}
        axes.imshow(picture[part], extent=(west, east, south, north), **options)
        axes.set_title(title)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_formatter("{x:g}° E")
        axes.yaxis.set_major_formatter("{x:g}°")
    patches = [
        Patch(facecolor=colours(i), edgecolor="grey", label=n)
        for i, n in enumerate(CLASS_NAMES)
        if (labels[part] == i).any()
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4)
    with atomic_write(path) as part_file:
        figure.savefig(part_file, dpi=110, format="png")


if __name__ == "__main__":
    main()
