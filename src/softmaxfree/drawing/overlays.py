"""What a dense task finds, drawn onto the image."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from softmaxfree.drawing.colours import BACKGROUND, UNLABELLED, colour, colours
from softmaxfree.drawing.text import Place, contrast, font_for, label, legible, line_height, place, shortened, text_size

__all__ = ["colour_classes", "draw", "overlay"]

_OPACITY = 0.5
_WIDEST = 0.6  # of a picture that a label may take


def draw(image: Tensor, found: dict[str, Tensor] | Tensor, class_names: Sequence[str]) -> Tensor:
    """Draw detections or the class of each pixel.

    Args:
        image: `(3, h, w)`, in [0, 1] or uint8.
        found: of a detector `boxes` `(n, 4)`, `labels` `(n,)` and perhaps `scores` and `masks`; or class numbers
            `(h, w)`, of which those of no class, such as 255, and the background are left as they are.
        class_names: name of each class.

    Returns:
        `(3, h, w)`, uint8.
    """
    return pil_to_tensor(overlay(image, found, class_names, empty="no objects"))


def overlay(
    image: Tensor, found: dict[str, Tensor] | Tensor, class_names: Sequence[str], scale: float = 1, empty: str = ""
) -> Image.Image:
    """Draw detections or the class of each pixel onto an image that is shown at another size.

    Boxes have labels, best first, as far as there is room beside other labels.

    Args:
        image: as for `draw`.
        found: as for `draw`, in pixels of the image.
        class_names: name of each class.
        scale: side of the picture to that of the image.
        empty: what is written into a picture without any object, where no legend tells it.

    Returns:
        The picture.
    """
    if image.is_floating_point():
        image = (image * 255).round().clamp(0, 255).to(torch.uint8)
    picture = to_pil_image(image.cpu())
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    if isinstance(found, Tensor):
        painted = np.array([own is not None for own in (*colours(class_names), None)])
        strength = painted.astype(np.uint8) * round(255 * _OPACITY)
        veil = Image.fromarray(strength[_numbers(found, len(class_names))]).resize(size, Image.Resampling.NEAREST)
        picture.paste(colour_classes(found, class_names, scale), mask=veil)
        return picture
    if "masks" in found:
        _draw_masks(picture, found["masks"], found["labels"])
    if empty and not len(found["labels"]):
        _write(picture, empty)
    _draw_boxes(picture, {key: value.cpu() for key, value in found.items()}, class_names, scale)
    return picture


def colour_classes(classes: Tensor, class_names: Sequence[str], scale: float = 1) -> Image.Image:
    """Return a picture of class numbers in their colours, the background in grey, what has no class in black.

    Args:
        classes: `(h, w)`, whole numbers.
        class_names: name of each class.
        scale: side of the picture to that of the classes.

    Returns:
        The picture.
    """
    table = np.array([*colours(class_names, BACKGROUND), UNLABELLED], np.uint8)
    picture = Image.fromarray(table[_numbers(classes, len(class_names))])
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST)


def _numbers(classes: Tensor, num_classes: int) -> np.ndarray:
    """Class numbers, and `num_classes` for what is none."""
    return np.minimum(classes.cpu().numpy().astype(np.uint32), num_classes)  # a negative one becomes a large one


def _draw_masks(picture: Image.Image, masks: Tensor, labels: Tensor) -> None:
    """Each pixel gets the colour of the best object that it belongs to, once: what lies below stays visible."""
    if not len(masks):
        return
    layer = Image.new("RGB", (masks.shape[2], masks.shape[1]))
    for own, number in zip(reversed(list(masks.cpu().bool().numpy())), reversed(labels.tolist()), strict=True):
        layer.paste(colour(number), mask=Image.fromarray(own))
    veil = Image.fromarray(masks.cpu().bool().any(0).numpy().astype(np.uint8) * round(255 * _OPACITY))
    layer, veil = (each.resize(picture.size, Image.Resampling.NEAREST) for each in (layer, veil))
    picture.paste(layer, mask=veil)


def _draw_boxes(picture: Image.Image, found: dict[str, Tensor], class_names: Sequence[str], scale: float) -> None:
    pen = ImageDraw.Draw(picture)
    width, height = picture.size
    size = text_size(height, width)
    line = max(2, size // 7)
    labels = found["labels"].tolist()
    limits = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    boxes = (found["boxes"] * scale).round().clamp(min=0).minimum(limits).int().tolist()
    for number, box in reversed(list(zip(labels, boxes, strict=True))):  # the best on top
        pen.rectangle(box, outline=contrast(colour(number)), width=line + line // 2)
        pen.rectangle(box, outline=colour(number), width=line)
    taken: list[Place] = []
    scores = found["scores"].tolist() if "scores" in found else [None] * len(labels)
    for number, box, score in zip(labels, boxes, scores, strict=True):
        behind = "" if score is None else f" {score:.2f}"
        name = shortened(legible(str(class_names[number]), number), size, _WIDEST * width - _width(behind, size))
        text = f"{name}{behind}"
        where = place(box, (_width(text, size), line_height(size)), picture.size, taken)
        if where is not None:
            label(pen, where, text, size, colour(number))
            taken.append(where)


def _write(picture: Image.Image, text: str) -> None:
    size = text_size(picture.height, picture.width)
    text = shortened(text, size, picture.width - size // 2)
    label(ImageDraw.Draw(picture), (0, 0, _width(text, size), line_height(size)), text, size, UNLABELLED)


def _width(text: str, size: int) -> int:
    return round(font_for(text, size).getlength(text)) + 2 * (size // 4)
