"""`softmaxfree predict`: the likeliest classes of images; dense tasks are in `predict_dense`."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from tqdm import tqdm

from softmaxfree.atomic import atomic_write
from softmaxfree.cli.checkpoint import load_classifier, load_task
from softmaxfree.cli.inputs import find_images_of, skip_or_fail, tell
from softmaxfree.cli.outputs import require_free
from softmaxfree.cli.table import plain_table, print_table
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS, check_resized, read_image

__all__ = ["run"]


def run(
    files: Sequence[str],
    checkpoint: str | None = None,
    model: str | None = None,
    topk: int = 5,
    class_names: str | None = None,
    format: Literal["table", "json", "csv"] = "table",
    out: str | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    batch_size: int = 16,
    device: str = "cpu",
    task: Literal["classification", "detection", "segmentation"] = "classification",
    threshold: float = 0.5,
    size: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Classify images and print or write the likeliest classes of each; or draw what a dense task finds.

    Args:
        files: images, and folders that are searched for images.
        checkpoint: see `load_classifier`.
        model: see `load_classifier`.
        topk: number of classes an image, at most all.
        class_names: text file with a class a line; None takes the checkpoint's names, or numbers.
        format: of the result.
        out: file to write it to; None prints it. Of a dense task a folder; None is `predictions`.
        on_error: what an unreadable image does: it is named and skipped, or ends the command.
        batch_size: images at a time.
        device: where the model runs.
        task: what the checkpoint was trained for.
        threshold: score from which a detection counts.
        size: shorter side of the images for the network, pixels; None is that of the training.
        max_pixels: height times width from which an image is refused.

    Raises:
        FileNotFoundError: a file or the checkpoint is missing.
        InputError: an argument or the checkpoint is wrong, or no image can be read.
        OSError: the result cannot be written.

    Examples:
        softmaxfree predict three.png --checkpoint runs/digits/0
        softmaxfree predict photos/ --checkpoint soft_tiny.safetensors --format csv --out classes.csv
        softmaxfree predict cat.jpg --checkpoint SOFT_Tiny.pth --model soft_tiny --class-names imagenet.txt
        softmaxfree predict street.jpg --task segmentation --checkpoint best.ckpt --out drawn
    """
    counts = {"--topk": topk, "--batch-size": batch_size, "--size": size, "--max-pixels": max_pixels}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more, got {value}")
    images, left_out = find_images_of(files)
    inputs = [path for path in (checkpoint, class_names) if path is not None]
    if task != "classification":
        from softmaxfree.cli.predict_dense import predict_dense

        if not 0 <= threshold <= 1:  # nan too
            raise InputError(f"--threshold must be 0 to 1, got {threshold}")
        loaded = load_task(checkpoint, task, size)
        if class_names is not None:
            loaded = loaded._replace(class_names=_read_names(class_names, len(loaded.class_names)))
        _to(loaded.task, device)
        predict_dense(images, loaded, out or "predictions", threshold, on_error, files, inputs, max_pixels)
        tell(left_out)
        return
    if out is not None:
        require_free([out], [*images, *inputs], _is_table)
    classifier = load_classifier(checkpoint, model, size)
    names = classifier.class_names if class_names is None else _read_names(class_names, len(classifier.class_names))
    net = _to(classifier.model, device)
    results = []
    for paths, batch in _batches(images, _reader(classifier.data_config, max_pixels), batch_size, on_error):
        with torch.inference_mode():
            best = net(batch.to(device)).float().softmax(-1).topk(min(topk, len(names)))
        for path, values, indices in zip(paths, best.values.tolist(), best.indices.tolist(), strict=True):
            likeliest = zip(indices, values, strict=True)
            predictions = [{"class": names[i], "index": i, "probability": p} for i, p in likeliest]
            results.append({"file": str(path), "predictions": predictions})
    if not results:
        raise InputError(f"none of the {len(images)} images can be read")
    if skipped := len(images) - len(results):
        print(f"{skipped} of {len(images)} images skipped", file=sys.stderr)
    _write(results, format, out)
    tell(left_out)


def _to(net: nn.Module, device: str) -> nn.Module:
    try:
        return net.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error


def _read_names(file: str, num_classes: int) -> list[str]:
    names = Path(file).read_text(encoding="utf-8").splitlines()
    if len(names) != num_classes:
        raise InputError(f"--class-names: {file} has {len(names)} lines, but the model has {num_classes} classes")
    return names


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


def _write(results: list[dict], format: str, out: str | None) -> None:
    if format == "table" and out is None:
        print_table(*_table(results))
        return
    text = {"json": _json, "csv": _csv, "table": lambda r: plain_table(*_table(r)) + "\n"}[format](results)
    if out is None:
        sys.stdout.write(text)
        return
    with atomic_write(out) as part:  # names of files may hold any bytes: JSON has an escape for them
        part.write_text(text, encoding="utf-8", errors="backslashreplace" if format == "json" else "surrogateescape")


def _is_table(path: Path) -> bool:
    """Whether a file begins as one of the three formats does."""
    with path.open("rb") as file:
        start = b" ".join(file.read(4096).split())
    return start.startswith((b"file,rank,class,index,probability", b'[ { "file": "')) or (
        start.startswith(b"file ") and b" top-1" in start
    )


def _table(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    columns = ["file", *(f"top-{i + 1}" for i in range(len(results[0]["predictions"])))]
    cells = [[f"{p['class']} {p['probability']:.1%}" for p in result["predictions"]] for result in results]
    return columns, [[result["file"], *row] for result, row in zip(results, cells, strict=True)]


def _json(results: list[dict]) -> str:
    return json.dumps(results, indent=2, ensure_ascii=False) + "\n"


def _csv(results: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "rank", "class", "index", "probability"))
    for result in results:
        for rank, p in enumerate(result["predictions"], start=1):
            writer.writerow((result["file"], rank, p["class"], p["index"], f"{p['probability']:.6f}"))
    return text.getvalue()
