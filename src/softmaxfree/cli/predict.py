"""`softmaxfree predict`: the likeliest classes of images, or pictures of what a dense task finds."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS

__all__ = ["run"]

_OVERLAP = 1 / 3
_OF_ONE_TASK = {
    "model": "classification",
    "topk": "classification",
    "format": "classification",
    "threshold": "detection",
    "window": "segmentation",
    "overlap": "segmentation",
}  # options that mean nothing to the other tasks


def run(
    files: Sequence[Path],
    checkpoint: Path | None = None,
    model: str | None = None,
    task: Literal["classification", "detection", "segmentation"] | None = None,
    out: Path | None = None,
    topk: int | None = None,
    class_names: Path | None = None,
    format: Literal["table", "json", "csv"] = "table",
    threshold: float = 0.5,
    size: int | None = None,
    window: int | None = None,
    overlap: float | None = None,
    device: str = "auto",
    on_error: Literal["skip", "fail"] = "skip",
    batch_size: int = 16,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Tell the likeliest classes of images, or draw the objects or classes that are in them.

    The checkpoint says which of the two. Of a classifier a table is printed. Of a detector or a segmenter the folder
    OUT gets, in folders as those of the images, a picture `NAME.png` of each image, with a legend; of a segmenter also
    `NAME_classes.png`, the class number of each pixel, and `NAME_colours.png`, the same in colours. `predictions.json`
    lists all of it.

    Args:
        files: Images, and folders that are searched for images.
        checkpoint: The weights: folder of a run (its `best.ckpt`, or else `last.ckpt`), a `.ckpt` of
            `softmaxfree train`, a `.safetensors` of `softmaxfree convert`, a folder of timm's `save_for_hf` such as
            `best` of a run, or any other `.pth` or `.safetensors` together with MODEL.
        model: Name of the model, where the checkpoint does not tell it. Without a checkpoint, a model that timm has
            weights of.
        task: What the checkpoint was trained for; it tells this itself, so that there is no need to.
        out: Where the result goes. Of a classifier a file; by default it is printed. Otherwise a folder; by default
            `predictions`.
        topk: Classifier: number of likeliest classes to tell of each image. By default half of the classes, 1 at least
            and 5 at most.
        class_names: Text file with the name of a class on each line, in the order of the model's outputs; by default
            the names are those in the checkpoint, or numbers.
        format: Classifier: how the result is written.
        threshold: Detector: score from which an object counts, 0 to 1.
        size: Pixels that the shorter side of an image is resized to for the network. By default that of the training;
            a segmenter takes each image at its own size.
        window: Segmenter: height and width, in pixels, of windows that slide over the image; by default the network
            sees the image as a whole.
        overlap: Segmenter: part of a window that it shares with the next one, from 0 to below 1; by default a third.
        device: Where the model runs: `auto` (a GPU if there is one, or else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        on_error: What happens at an image that cannot be read: it is named and skipped, or the command ends.
        batch_size: Classifier: images at a time.
        max_pixels: Height times width from which an image is refused.

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
    given = dict(locals())
    for name in ("topk", "batch_size", "size", "window", "max_pixels"):
        if given[name] is not None and given[name] < 1:
            raise InputError(f"{_option(name)} must be 1 or more, got {given[name]}")
    if not 0 <= threshold <= 1:  # nan too
        raise InputError(f"--threshold must be 0 to 1, got {threshold}")
    if overlap is not None and not 0 <= overlap < 1:
        raise InputError(f"--overlap must be from 0 to below 1, a part of the window, got {overlap}")

    from softmaxfree.cli.checkpoint import find_checkpoint, find_kind, load_classifier, load_task  # torch: seconds
    from softmaxfree.cli.device import find_device
    from softmaxfree.cli.inputs import find_images_of, tell
    from softmaxfree.cli.outputs import require_free

    where = find_device(device)
    images, left_out = find_images_of(list(map(str, files)))
    weights = None if checkpoint is None else find_checkpoint(checkpoint)
    kind = _agreed(task, find_kind(weights), weights, given)
    inputs = [path for path in (weights, class_names) if path is not None]
    if kind == "classification":
        from softmaxfree.cli.predict_classes import is_table, predict_classes

        if out is not None:
            require_free([out], [*images, *inputs], is_table)
        classifier = load_classifier(weights, model, size)
        classifier = classifier._replace(class_names=_read_names(class_names, classifier.class_names))
        classifier.model.to(where)
        predict_classes(
            images,
            classifier,
            out,
            on_error=on_error,
            max_pixels=max_pixels,
            topk=topk,
            format=format,
            batch_size=batch_size,
            device=where,
        )
    else:
        from softmaxfree.cli.predict_dense import predict_dense

        shared = _OVERLAP if overlap is None else overlap
        loaded = load_task(weights, kind, size, window=window, overlap=shared, threshold=threshold)
        loaded = loaded._replace(class_names=_read_names(class_names, loaded.class_names))
        loaded.task.to(where)
        predict_dense(
            images,
            loaded,
            out or "predictions",
            threshold,
            on_error,
            files,
            inputs,
            max_pixels=max_pixels,
            size=size,
            whole=window is None,
        )
    tell(left_out)


def _agreed(task: str | None, kind: str, checkpoint: str | None, given: dict[str, Any]) -> str:
    """The kind of task, of which neither `--task` nor another option may say otherwise."""
    if checkpoint is None and task not in (None, kind):
        raise InputError(f"--task {task} needs --checkpoint, a run's folder or a .ckpt of `softmaxfree train`")
    if task not in (None, kind):
        raise InputError(f"--task is {task}, but {checkpoint} is of {kind}; without --task the checkpoint tells")
    usual = inspect.signature(run).parameters
    for name in given:
        if given[name] != usual[name].default and _OF_ONE_TASK.get(name, kind) != kind:
            raise InputError(
                f"{_option(name)} is for {_OF_ONE_TASK[name]}, but {checkpoint or 'this model'} is of {kind}"
            )
    if given["overlap"] is not None and given["window"] is None:
        raise InputError("--overlap is that of windows: give --window too")
    return kind


def _read_names(file: Path | None, own: list[str]) -> list[str]:
    """Names of classes from a file, as many as the model has; without one the model's own."""
    if file is None:
        return own
    try:
        names = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"--class-names: {file} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    if len(names) != len(own):
        raise InputError(f"--class-names: {file} has {len(names)} lines, but the model has {len(own)} classes")
    return names


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
