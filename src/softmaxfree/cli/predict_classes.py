"""`softmaxfree predict` of a classifier: the likeliest classes of images."""

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor
from tqdm import tqdm

from softmaxfree.cli.checkpoint import Classifier
from softmaxfree.cli.inputs import skip_or_fail
from softmaxfree.cli.table import write_results
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS, check_resized, read_image
from softmaxfree.ops import stablemax_logits

__all__ = ["is_table", "predict_classes"]

_TOP = 5


def predict_classes(
    images: Sequence[Path],
    classifier: Classifier,
    out: str | Path | None = None,
    *,
    topk: int | None = None,
    format: str = "table",
    on_error: str = "skip",
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Print or write the likeliest classes of each image.

    Args:
        images: files.
        classifier: the model, its preparation of images and the names of its classes.
        out: file to write to; None prints.
        topk: number of classes an image, at most all; None is half of them, 1 at least and 5 at most.
        format: "table", "json" or "csv".
        on_error: "skip" names and leaves out an unreadable image, "fail" stops.
        batch_size: images at a time.
        device: of the model.
        max_pixels: height times width from which an image is refused.

    Raises:
        InputError: no image can be read, or one is unreadable and `on_error` is "fail".
        OSError: the result cannot be written.
    """
    names = classifier.class_names
    told = min(max(len(names) // 2, 1), _TOP) if topk is None else min(topk, len(names))
    results = []
    for paths, batch in _batches(images, _reader(classifier.data_config, max_pixels), batch_size, on_error):
        with torch.inference_mode():
            logits = classifier.model(batch.to(device)).float()
            if classifier.loss == "stablemax":
                logits = stablemax_logits(logits)
            best = logits.softmax(-1).topk(told)
        for path, values, indices in zip(paths, best.values.tolist(), best.indices.tolist(), strict=True):
            likeliest = zip(indices, values, strict=True)
            predictions = [{"class": names[i], "index": i, "probability": p} for i, p in likeliest]
            results.append({"file": str(path), "predictions": predictions})
    if not results:
        raise InputError(f"none of the {len(images)} images can be read")
    if skipped := len(images) - len(results):
        print(f"{skipped} of {len(images)} images skipped", file=sys.stderr)
    write_results(results, format, out, _table, _csv)


def is_table(path: Path) -> bool:
    """Whether a file begins as one of the three formats does."""
    with path.open("rb") as file:
        start = b" ".join(file.read(4096).split())
    return start.startswith((b"file,rank,class,index,probability", b'[ { "file": "')) or (
        start.startswith(b"file ") and b" top-1" in start
    )


def _reader(data_config: dict[str, Any], max_pixels: int) -> Callable[[Path], Tensor]:
    """What makes the model's input of an image file."""
    mode: Any = "L" if data_config["input_size"][0] == 1 else "RGB"
    transform: Any = create_transform(**data_config)
    shorter = int(min(data_config["input_size"][1:]) / (data_config.get("crop_pct") or 1))

    def read(path: Path) -> Tensor:
        image = read_image(path, mode, max_pixels)
        check_resized(image, shorter, str(path))
        return transform(image)

    return read


def _batches(
    images: Sequence[Path], read: Callable[[Path], Tensor], batch_size: int, on_error: str
) -> Iterator[tuple[list[Path], Tensor]]:
    """Paths and tensors of the images that can be read."""

    def readable() -> Iterator[tuple[Path, Tensor]]:
        for path in tqdm(images, unit="image", disable=None if len(images) > 1 else True, leave=False):
            try:
                yield path, read(path)
            except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
                skip_or_fail(path, error, on_error)

    items = readable()
    while batch := list(islice(items, batch_size)):
        paths, tensors = zip(*batch, strict=True)
        yield list(paths), torch.stack(tensors)


def _table(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    columns = ["file", *(f"top-{i + 1}" for i in range(len(results[0]["predictions"])))]
    cells = [[f"{p['class']} {p['probability']:.1%}" for p in result["predictions"]] for result in results]
    return columns, [[result["file"], *row] for result, row in zip(results, cells, strict=True)]


def _csv(results: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "rank", "class", "index", "probability"))
    for result in results:
        for rank, p in enumerate(result["predictions"], start=1):
            writer.writerow((result["file"], rank, p["class"], p["index"], f"{p['probability']:.6f}"))
    return text.getvalue()
