"""`softmaxfree predict --task detection` and `--task segmentation`: pictures and JSON."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from softmaxfree.atomic import atomic_write, write_json
from softmaxfree.cli.checkpoint import LoadedTask
from softmaxfree.cli.inputs import skip_or_fail
from softmaxfree.cli.outputs import (
    LIST,
    common_folder,
    is_ours,
    mark,
    name_outputs,
    require_free,
    without_earlier,
)
from softmaxfree.drawing import BACKGROUND, beside_legend, colour_classes, colours, count_labels, entries, overlay
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS, read_image

__all__ = ["predict_dense"]

_LEGIBLE = 480  # pixels: smaller images are shown several times larger
_MUCH_LARGER = 2  # than in training, each side
_SHARES = "share of the pixels"


def predict_dense(
    images: Sequence[Path],
    loaded: LoadedTask,
    out: str | Path,
    threshold: float,
    on_error: str,
    files: Sequence[str | Path] = (),
    inputs: Sequence[str | Path] = (),
    max_pixels: int = MAX_PIXELS,
    size: int | None = None,
    whole: bool = True,
    checkpoint: str = "",
) -> None:
    """Write each image with what is found in it drawn, and `predictions.json`, which names these pictures.

    Of a detector the JSON holds class, score, box (left, top, right, bottom, in pixels) and, if there is one, the mask
    in COCO's run lengths. Of a segmenter it holds each class and its part of the image; beside the picture a PNG
    `NAME_classes.png` of the image's size holds the number of each pixel's class, and `NAME_colours.png` shows it.
    Pictures lie in folders as the images do. Those for the eye have a legend, and small images are magnified.

    Args:
        images: files.
        loaded: the task.
        out: folder to write to.
        threshold: score from which a detection counts.
        on_error: "skip" names and leaves out an unreadable image, "fail" stops.
        files: what the user named, images and folders of them; none: the images.
        inputs: further files that are read, such as the checkpoint.
        max_pixels: height times width from which an image is refused.
        size: shorter side that an image to be segmented is resized to; None takes it at its own size.
        whole: images are segmented whole, not in windows: one that is much larger than in training is told.
        checkpoint: path of the weights, which the list tells.

    Raises:
        InputError: no image can be read, a picture would replace an input or a foreign file, or an image is unreadable
            and `on_error` is "fail".
        OSError: a file cannot be written.
    """
    folder = Path(out)
    files = files or images
    images = without_earlier(images, map(str, files), folder)
    endings = [".png", "_classes.png", "_colours.png"] if loaded.kind == "segmentation" else [".png"]
    names = name_outputs(images, common_folder(files), endings)
    written = [folder / name for outputs in names.values() for name in outputs]
    require_free([*written, folder / LIST], [*images, *inputs], is_ours)
    results, empty, large = [], 0, list[int]()
    for path in tqdm(images, unit="image", disable=None if len(images) > 1 else True, leave=False):
        try:
            image = tv.to_image(read_image(path, "RGB", max_pixels)).as_subclass(Tensor)
            with torch.inference_mode():  # which refuses images that are too small
                if loaded.kind == "segmentation":
                    found, predictions = _segment(loaded, image, size)
                else:
                    found, predictions = _detect(loaded, image, threshold)
        except (InputError, OSError) as error:
            skip_or_fail(path, error, on_error)
            continue
        pictures = _pictures(image, found, loaded, threshold)
        for picture, name in zip(pictures.values(), names[path], strict=True):
            _write_png(folder / name, picture)
        written_as = {key: str(name) for key, name in zip(pictures, names[path], strict=True)}
        height, width = image.shape[1:]
        entry = {"file": str(path), "checkpoint": checkpoint, "height": height, "width": width, **written_as}
        results.append({**entry, "predictions": predictions})
        empty += not predictions
        if size is None and whole and min(height, width) > _MUCH_LARGER * loaded.size[0]:
            large.append(min(height, width))
    if not results:
        raise InputError(f"none of the {len(images)} images can be read")
    write_json(folder / LIST, results)
    line = f"{len(results)} image{'s' if len(results) > 1 else ''} drawn into {folder}"
    if empty:
        line += f", {f'{empty} of them ' if len(results) > 1 else ''}without objects"
    print(line + (f", {skipped} skipped" if (skipped := len(images) - len(results)) else ""))
    if loaded.kind == "segmentation" and large:
        print(
            f"{len(large)} of them much larger than in training (shorter side up to {max(large)} pixels, there "
            f"{loaded.size[0]}): --window {loaded.size[0]} or --size {loaded.size[0]} may find more",
            file=sys.stderr,
        )


_Described = tuple[Any, list[dict[str, Any]]]


def _in_unit_range(image: Tensor) -> Tensor:
    return tv.to_dtype(image, torch.float32, scale=True)


def _detect(loaded: LoadedTask, image: Tensor, threshold: float) -> _Described:
    found = loaded.task([_in_unit_range(image).to(loaded.task.device)])[0]
    keep = found["scores"] >= threshold
    found = {key: value[keep].cpu() for key, value in found.items()}
    predictions = []
    for i, (label, score) in enumerate(zip(found["labels"].tolist(), found["scores"].tolist(), strict=True)):
        box = [round(x, 2) for x in found["boxes"][i].tolist()]
        predictions.append({"class": loaded.class_names[label], "index": label, "score": round(score, 4), "box": box})
        if "masks" in found:
            runs = coco_mask.encode(found["masks"][i].byte().T.contiguous().numpy().T)
            predictions[-1]["mask"] = {"size": runs["size"], "counts": runs["counts"].decode()}
    return found, predictions


def _segment(loaded: LoadedTask, image: Tensor, size: int | None) -> _Described:
    classes = _classes(loaded, image, size).cpu()
    counts = count_labels(classes, len(loaded.class_names))
    parts = [
        {"class": loaded.class_names[i], "index": i, "part": round(int(counts[i]) / classes.numel(), 5)}
        for i in counts.argsort(descending=True, stable=True).tolist()
        if counts[i]
    ]
    return classes, parts


def _classes(loaded: LoadedTask, image: Tensor, size: int | None) -> Tensor:
    """Class numbers at the size of the image."""
    task, shape = loaded.task, image.shape[1:]
    told = task.hparams
    try:
        if size is None and not told["scales"]:  # without all logits of a large image
            sliding = (told["window"], told["stride"]) if told["evaluation"] == "slide" else (None, None)
            return task.model.predict_classes(image.to(task.device), *sliding)
        if size is not None:
            image = tv.resize(image, loaded.resized(shape[0], shape[1], size))
        logits = task([_in_unit_range(image).to(task.device)])[0]
    except AssertionError as error:  # timm's, of a backbone that takes one size
        hint = f"--window {loaded.size[0]} gives it that of its training"
        raise InputError(f"the backbone takes no {image.shape[1]}x{image.shape[2]} pixels: {error} {hint}") from error
    if logits.shape[1:] != shape:
        logits = F.interpolate(logits[None], size=shape, mode="bilinear")[0]
    return logits.argmax(0).to(torch.uint8 if len(logits) <= 256 else torch.int32)


def _pictures(image: Tensor, found: Any, loaded: LoadedTask, threshold: float) -> dict[str, Image.Image]:
    """What is written of an image, by the key in the list."""
    names = loaded.class_names
    scale = max(1, round(_LEGIBLE / max(image.shape[1:])))
    counts = count_labels(found, len(names))
    drawn = overlay(image, found, names, scale)
    if not isinstance(found, Tensor):
        number = len(found["labels"])
        heading = f"{number or 'no'} object{'' if number == 1 else 's'} with a score of {threshold:g} or more"
        return {"picture": beside_legend(drawn, entries(counts, names, "count"), heading)}
    flat = colour_classes(found, names, scale)
    lines, painted = (entries(counts, names, "share", colours(names, ground)) for ground in (None, BACKGROUND))
    return {
        "picture": beside_legend(drawn, lines, _SHARES),
        "classes": tv.to_pil_image(found[None]),
        "colours": beside_legend(flat, painted, _SHARES),
    }


def _write_png(path: Path, image: Image.Image) -> None:
    with atomic_write(path) as part:
        image.save(part, "PNG", pnginfo=mark())
