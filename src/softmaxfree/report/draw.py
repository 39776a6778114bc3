"""What a dense task sees in validation images, beside what is there."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from softmaxfree.atomic import atomic_write
from softmaxfree.drawing import beside_legend, colours, count_labels, draw, entries, overlay
from softmaxfree.drawing.text import font_for, line_height

__all__ = ["draw", "draw_samples"]

_SIDE = 360  # pixels of the longer side of an image in the picture
_GAP = 6
_LETTERS = 18

_Found = dict[str, Tensor] | Tensor


def draw_samples(task: Any, data: Any, path: str | Path, count: int = 6, threshold: float = 0.5) -> None:
    """Draw the first validation images: in the upper row what is there, below it what the task finds.

    Args:
        task: of detection or segmentation.
        data: its data module, set up.
        path: the PNG file; it is not written where no image can be read.
        count: of images.
        threshold: score from which a detection is drawn.
    """
    task.eval()
    samples: list[tuple[Tensor, _Found, _Found]] = []
    for images, targets in data.val_dataloader():
        if not images:  # none of them could be read
            continue
        with torch.inference_mode():
            found = task([image.to(task.device) for image in images])
        for image, ours, truth in zip(images, found, targets, strict=True):
            samples.append((image, _truth(truth, image), _shown(ours, threshold)))
        if len(samples) >= count:
            break
    if not (samples := samples[:count]):
        return
    names = [str(name) for name in data.class_names]
    kind = "objects" if isinstance(samples[0][1], dict) else "classes"
    above = f" (score of {threshold:g} or more)" if kind == "objects" else ""
    rows: dict[str, list[Image.Image]] = {"truth": [], f"prediction{above}": []}
    for image, *both in samples:
        for row, one in zip(rows.values(), both, strict=True):
            row.append(overlay(image, one, names, _SIDE / max(image.shape[1:]), "no objects"))
    counts = torch.stack([count_labels(one, len(names)) for _, *both in samples for one in both]).sum(0)
    lines = entries(counts, names, colours=None if kind == "objects" else colours(names))
    with atomic_write(path) as part:
        beside_legend(_grid(rows), lines, kind, _LETTERS).save(part, "PNG")


def _grid(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Rows of pictures, each under its title."""
    pictures = [picture for row in rows.values() for picture in row]
    width, height = max(p.width for p in pictures) + _GAP, max(p.height for p in pictures) + _GAP
    head = line_height(_LETTERS) + _GAP
    columns = max(map(len, rows.values()))
    whole = Image.new("RGB", (columns * width + _GAP, len(rows) * (height + head) + _GAP), "white")
    pen = ImageDraw.Draw(whole)
    for i, (title, row) in enumerate(rows.items()):
        top = i * (height + head) + _GAP
        pen.text((_GAP, top), title, fill="black", font=font_for(title, _LETTERS))
        for k, picture in enumerate(row):
            whole.paste(picture, (k * width + _GAP, top + head))
    return whole


def _shown(found: Any, threshold: float) -> _Found:
    """Class numbers of logits; detections of the threshold or better."""
    if isinstance(found, Tensor):
        return found.argmax(0)
    keep = found["scores"] >= threshold
    return {key: value[keep] for key, value in found.items()}


def _truth(truth: Any, image: Tensor) -> _Found:
    """Labels at the size of the image, which may be another than that of the original; boxes as they are."""
    if isinstance(truth, Tensor):
        return F.interpolate(truth[None, None].float(), size=image.shape[1:], mode="nearest")[0, 0].long()
    return {key: truth[key] for key in ("boxes", "labels", "masks") if key in truth}
