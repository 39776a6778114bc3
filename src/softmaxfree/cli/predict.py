"""`softmaxfree predict`: the likeliest classes of images or slides, or pictures of what a dense task finds."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS

__all__ = ["run"]

_OVERLAP, _SCORE = 1 / 3, 0.5
_OF_TASKS = {
    "model": ("classification",),
    "topk": ("classification",),
    "format": ("classification", "bags"),
    "coords": ("bags",),
    "threshold": ("detection",),
    "size": ("classification", "detection", "segmentation"),
    "batch_size": ("classification",),
    "max_pixels": ("classification", "detection", "segmentation"),
    "window": ("segmentation",),
    "overlap": ("segmentation",),
}  # options that mean nothing to the other tasks
_FORMATS = {".csv": "csv", ".json": "json"}


def run(
    files: Sequence[Path],
    checkpoint: Path | None = None,
    model: str | None = None,
    task: Literal["classification", "detection", "segmentation", "bags"] | None = None,
    out: Path | None = None,
    topk: int | None = None,
    class_names: Path | None = None,
    format: Literal["table", "json", "csv"] | None = None,
    threshold: float | None = None,
    size: int | None = None,
    window: int | None = None,
    overlap: float | None = None,
    coords: Path | None = None,
    device: str = "auto",
    on_error: Literal["skip", "fail"] = "skip",
    batch_size: int = 16,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Use a trained model: tell the classes of images, or draw what is found in them.

    The checkpoint decides what happens. A classifier of images prints a table with the likeliest classes of each image.
    A detector or segmenter writes to the folder OUT, which gets the same subfolders as the images: a picture `NAME.png`
    of each image, with a legend, and one file `predictions.json` that lists all results. A segmenter also writes
    `NAME_classes.png`, with the class number of each pixel, and `NAME_colours.png`, the same in colours. Of bags a line
    a slide is printed: the likeliest class, and the probability of each; of survival the risk, too.

    Args:
        files: Images, or folders that are searched for images. For bags files of features, or folders of these.
        checkpoint: The weights. This may be the folder of a run (its `best.ckpt` is taken, or else `last.ckpt`), a
            `.ckpt` of `softmaxfree train`, a `.safetensors` of `softmaxfree convert`, a folder of timm's `save_for_hf`
            such as `best` in a run, or any other `.pth` or `.safetensors` together with --model.
        model: Name of the model, needed only if the checkpoint does not tell it. Without --checkpoint it is a model
            with published weights, which are downloaded.
        task: Task that the checkpoint must be of. It can be left out: the checkpoint tells its task.
        out: Where the result goes. Classifier and bags: a file; by default the result is printed. Detector and
            segmenter: a folder, which holds no predictions of other images or of another checkpoint; by default
            `predictions`, or where that holds such, `predictions-2` and so on.
        topk: Classifier: number of likeliest classes to tell of each image. By default half of the classes, 1 at least
            and 5 at most.
        class_names: Text file with the names of the classes, one on each line, in the order of the model's outputs. By
            default the names are those in the checkpoint; if it has none, numbers.
        format: Classifier and bags: format of the result. By default that of the ending of OUT, `.csv` or `.json`, or
            else a table to read.
        threshold: Detector: lowest score of an object that is shown, 0 to 1; by default 0.5.
        size: Length, in pixels, to which the shorter side of each image is resized for the network. By default it is
            that of the training; a segmenter takes each image at its own size.
        window: Segmenter: height and width, in pixels, of windows that slide over the image. By default the network
            sees the whole image at once.
        overlap: Segmenter: part of a window that it shares with the next one, from 0 to below 1; by default 1/3.
        coords: Bags: folder of coordinates that are not beside the features.
        device: Where the model runs: `auto` (a GPU if there is one, or else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        on_error: What happens at an image or slide that cannot be read: `skip` names it and goes on, `fail` ends the
            command.
        batch_size: Classifier: number of images that the network sees at a time.
        max_pixels: Largest number of pixels (height times width) of an image that is read.

    Raises:
        FileNotFoundError: a file or the checkpoint is missing.
        InputError: an argument or the checkpoint is wrong, or no image can be read.
        OSError: the result cannot be written.

    Examples:
        softmaxfree predict three.png --checkpoint runs/digits/0
        softmaxfree predict photos/ --checkpoint soft_tiny.safetensors --out classes.csv
        softmaxfree predict cat.jpg --checkpoint SOFT_Tiny.pth --model soft_tiny --class-names imagenet.txt
        softmaxfree predict features_uni/ --checkpoint runs/bags/0 --out slides.csv
        softmaxfree predict street.jpg --task segmentation --checkpoint best.ckpt --out drawn
    """
    given = dict(locals())
    for name in ("topk", "batch_size", "size", "window", "max_pixels"):
        if given[name] is not None and given[name] < 1:
            raise InputError(f"{_option(name)} must be 1 or more, got {given[name]}")
    if threshold is not None and not 0 <= threshold <= 1:  # nan too
        raise InputError(f"--threshold must be 0 to 1, got {threshold}")
    if overlap is not None and not 0 <= overlap < 1:
        raise InputError(f"--overlap must be from 0 to below 1, a part of the window, got {overlap}")

    from softmaxfree.cli.checkpoint import find_checkpoint, find_kind, load_classifier, load_task  # torch: seconds
    from softmaxfree.cli.device import find_device
    from softmaxfree.cli.inputs import find_images_of, tell
    from softmaxfree.cli.outputs import require_free

    where = find_device(device)
    weights = None if checkpoint is None else find_checkpoint(checkpoint)
    kind = _agreed(task, find_kind(weights), weights, given)
    inputs = [path for path in (weights, class_names) if path is not None]
    form = format or _FORMATS.get(Path(out or "").suffix.lower(), "table")
    if kind == "bags":
        from softmaxfree.cli import predict_bags as bags

        slides = bags.find_bags(files, coords)
        if out is not None:
            require_free([out], [*(path for _, path, _ in slides), *inputs], bags.is_table)
        own, record = bags.load_bags(str(weights))
        names = _read_names(class_names, record.class_names)
        bags.predict_bags(slides, own.to(where), record, names, out, format=form, on_error=on_error)
        return
    images, left_out = find_images_of(list(map(str, files)))
    if kind == "classification":
        from softmaxfree.cli.predict_classes import is_table, predict_classes

        if out is not None:
            require_free([out], [*images, *inputs], is_table)
        classifier = load_classifier(weights, model, size)
        if not classifier.model.num_classes:
            raise InputError(f"{weights or model} has no head, and so tells no classes: train it with one")
        classifier = classifier._replace(class_names=_read_names(class_names, classifier.class_names))
        classifier.model.to(where)
        predict_classes(
            images,
            classifier,
            out,
            on_error=on_error,
            max_pixels=max_pixels,
            topk=topk,
            format=form,
            batch_size=batch_size,
            device=where,
        )
    else:
        from softmaxfree.cli.outputs import choose_folder
        from softmaxfree.cli.predict_dense import predict_dense

        checkpoint_path = os.path.abspath(weights or "")
        folder = choose_folder(out, checkpoint_path, images)
        shared = _OVERLAP if overlap is None else overlap
        score = _SCORE if threshold is None else threshold
        loaded = load_task(weights, kind, size, window=window, overlap=shared, threshold=score)
        loaded = loaded._replace(class_names=_read_names(class_names, loaded.class_names))
        loaded.task.to(where)
        predict_dense(
            images,
            loaded,
            folder,
            score,
            on_error,
            files,
            inputs,
            max_pixels=max_pixels,
            size=size,
            whole=window is None,
            checkpoint=checkpoint_path,
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
        if given[name] != usual[name].default and kind not in _OF_TASKS.get(name, (kind,)):
            tasks = " and ".join(_OF_TASKS[name])
            raise InputError(f"{_option(name)} is for {tasks}, but {checkpoint or 'this model'} is of {kind}")
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
