"""What a dense task sees, drawn onto the image."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import font_manager
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from softmaxfree.atomic import atomic_write

__all__ = ["draw", "draw_samples"]

_OPACITY = 0.5
_IGNORED = 255


def draw(image: Tensor, found: dict[str, Tensor] | Tensor, class_names: Sequence[str]) -> Tensor:
    """Draw detections or the class of each pixel.

    Args:
        image: `(3, h, w)`, in [0, 1].
        found: of a detector `boxes` `(n, 4)`, `labels` `(n,)` and perhaps `scores` and `masks`; or class numbers
            `(h, w)`, of which 255 and a class called "background" are left as they are.
        class_names: name of each class.

    Returns:
        `(3, h, w)`, uint8.
    """
    image = (image.cpu() * 255).round().clamp(0, 255).to(torch.uint8)
    if isinstance(found, Tensor):
        classes = [c for c in found.unique().tolist() if c != _IGNORED and class_names[c] != "background"]
        masks = torch.stack([found.cpu() == c for c in classes]) if classes else torch.zeros(0, *image.shape[1:]) > 0
        return draw_segmentation_masks(image, masks, alpha=_OPACITY, colors=_colours(classes)) if classes else image
    labels = found["labels"].tolist()
    if not labels:
        return image
    if "masks" in found:
        image = draw_segmentation_masks(image, found["masks"].cpu().bool(), alpha=_OPACITY, colors=_colours(labels))
    captions = [str(class_names[label]) for label in labels]
    if "scores" in found:
        captions = [f"{name} {score:.2f}" for name, score in zip(captions, found["scores"].tolist(), strict=True)]
    return draw_bounding_boxes(
        image,
        found["boxes"].cpu(),
        captions,
        _colours(labels),
        width=max(1, min(image.shape[1:]) // 250),
        font=font_manager.findfont("DejaVu Sans"),
        font_size=max(9, min(image.shape[1:]) // 30),
    )


def draw_samples(task: Any, data: Any, path: str | Path, count: int = 6, threshold: float = 0.5) -> None:
    """Draw the first validation images, what the task finds above and what is there below.

    Args:
        task: of detection or segmentation.
        data: its data module, set up.
        path: the PNG file.
        count: of images.
        threshold: score from which a detection is drawn.
    """
    task.eval()
    pairs: list[tuple[Tensor, Tensor]] = []
    for images, targets in data.val_dataloader():
        if not images:  # none of them could be read
            continue
        with torch.inference_mode():
            found = task([image.to(task.device) for image in images])
        for image, ours, truth in zip(images, found, targets, strict=True):
            pairs.append((draw(image, _shown(ours, threshold), data.class_names), _drawn_truth(image, truth, data)))
        if len(pairs) >= count:
            break
    height, width = (max(side) for side in zip(*(ours.shape[1:] for ours, _ in pairs), strict=True))
    columns = pairs[:count]
    tiles = [_padded(pair[row], height, width) for row in (0, 1) for pair in columns]
    with atomic_write(path) as part:
        to_pil_image(make_grid(tiles, len(columns), padding=4)).save(part, "PNG")


def _shown(found: Any, threshold: float) -> Any:
    """Class numbers of logits; detections of the threshold or better."""
    if isinstance(found, Tensor):
        return found.argmax(0)
    keep = found["scores"] >= threshold
    return {key: value[keep] for key, value in found.items()}


def _drawn_truth(image: Tensor, truth: Any, data: Any) -> Tensor:
    if isinstance(truth, Tensor):
        truth = F.interpolate(truth[None, None].float(), size=image.shape[1:], mode="nearest")[0, 0].long()
    else:
        truth = {key: truth[key] for key in ("boxes", "labels", "masks") if key in truth}
    return draw(image, truth, data.class_names)


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))


def _colours(classes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Bright hues, far apart for neighbouring classes."""
    hues = ((0.618 * c) % 1 for c in classes)
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1.0)) for hue in hues]  # type: ignore[misc]
