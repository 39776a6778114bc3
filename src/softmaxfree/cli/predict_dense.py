"""`softmaxfree predict --task detection` and `--task segmentation`: pictures and JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from softmaxfree.atomic import atomic_write
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
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS, read_image, resized_shape
from softmaxfree.report.draw import draw

__all__ = ["predict_dense"]


def predict_dense(
    images: Sequence[Path],
    loaded: LoadedTask,
    out: str | Path,
    threshold: float,
    on_error: str,
    files: Sequence[str | Path] = (),
    inputs: Sequence[str | Path] = (),
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write each image with what is found in it drawn, and `predictions.json`, which names these pictures.

    Of a detector the JSON holds class, score, box (left, top, right, bottom, in pixels) and, if there is one, the mask
    in COCO's run lengths. Of a segmenter it holds each class and its part of the image; beside the picture a PNG
    `NAME_classes.png` holds the number of each pixel's class. Pictures lie in folders as the images do.

    Args:
        images: files.
        loaded: the task.
        out: folder to write to.
        threshold: score from which a detection counts.
        on_error: "skip" names and leaves out an unreadable image, "fail" stops.
        files: what the user named, images and folders of them; none: the images.
        inputs: further files that are read, such as the checkpoint.
        max_pixels: height times width from which an image is refused.

    Raises:
        InputError: no image can be read, a picture would replace an input or a foreign file, or an image is unreadable
            and `on_error` is "fail".
        OSError: a file cannot be written.
    """
    folder = Path(out)
    files = files or images
    images = without_earlier(images, map(str, files), folder)
    endings = [".png", "_classes.png"] if loaded.kind == "segmentation" else [".png"]
    names = name_outputs(images, common_folder(files), endings)
    written = [folder / name for outputs in names.values() for name in outputs]
    require_free([*written, folder / LIST], [*images, *inputs], is_ours)
    task = loaded.task
    describe = _segment if loaded.kind == "segmentation" else _detect
    results = []
    for path in tqdm(images, unit="image", disable=None if len(images) > 1 else True, leave=False):
        try:
            image = tv.to_image(read_image(path, "RGB", max_pixels)).as_subclass(Tensor)
            with torch.inference_mode():  # which refuses images that are too small
                found, predictions = describe(task, image, loaded, threshold)
        except (InputError, OSError) as error:
            skip_or_fail(path, error, on_error)
            continue
        pictures = {"picture": draw(_in_unit_range(image), found, loaded.class_names)}
        if isinstance(found, Tensor):
            dtype = torch.uint8 if len(loaded.class_names) <= 256 else torch.int32
            pictures["classes"] = found.to(dtype)[None].cpu()
        for picture, name in zip(pictures.values(), names[path], strict=True):
            _write_png(folder / name, picture)
        written_as = {key: str(name) for key, name in zip(pictures, names[path], strict=True)}
        height, width = image.shape[1:]
        results.append({"file": str(path), "height": height, "width": width, **written_as, "predictions": predictions})
    if not results:
        raise InputError(f"none of the {len(images)} images can be read")
    with atomic_write(folder / LIST) as part:
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escapes, for names of any bytes
    skipped = len(images) - len(results)
    print(f"{len(results)} images drawn into {folder}" + (f", {skipped} skipped" if skipped else ""))


_Described = tuple[Any, list[dict[str, Any]]]


def _in_unit_range(image: Tensor) -> Tensor:
    return tv.to_dtype(image, torch.float32, scale=True)


def _detect(task: Any, image: Tensor, loaded: LoadedTask, threshold: float) -> _Described:
    found = task([_in_unit_range(image).to(task.device)])[0]
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


def _segment(task: Any, image: Tensor, loaded: LoadedTask, threshold: float) -> _Described:
    height, width = resized_shape(image.shape[1], image.shape[2], loaded.size)  # as in validation
    resized = _in_unit_range(tv.resize(image, [height, width], antialias=True))
    logits = F.interpolate(task([resized.to(task.device)])[0][None], size=image.shape[1:], mode="bilinear")[0]
    classes = logits.argmax(0)
    counts = classes.flatten().bincount(minlength=len(loaded.class_names))
    parts = [
        {"class": loaded.class_names[i], "index": i, "part": round(int(counts[i]) / classes.numel(), 5)}
        for i in counts.argsort(descending=True).tolist()
        if counts[i]
    ]
    return classes, parts


def _write_png(path: Path, image: Tensor) -> None:
    with atomic_write(path) as part:
        tv.to_pil_image(image).save(part, "PNG", pnginfo=mark())
