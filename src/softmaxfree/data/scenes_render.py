"""Digit scenes: handwritten digits pasted onto photographs, both from installed Python packages.

A scene is first planned in relative units, then painted at the wanted size: the same scene at any resolution.
"""

import colorsys
import functools
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from softmaxfree.data.digits import read_digits, split_digits
from softmaxfree.errors import InputError

__all__ = ["Scene", "render_scene"]

Split = Literal["train", "val"]

# (package, file): what the wheels of scikit-learn and scikit-image contain, so nothing is downloaded. The splits
# share no photograph, and none shows digits.
_PHOTOS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("sklearn.datasets.images", "china.jpg"),
        ("skimage.data", "coffee.png"),
        ("skimage.data", "chelsea.png"),
        ("skimage.data", "rocket.jpg"),
        ("skimage.data", "hubble_deep_field.jpg"),
        ("skimage.data", "motorcycle_left.png"),
        ("skimage.data", "grass.png"),
        ("skimage.data", "camera.png"),
    ),
    "val": (
        ("sklearn.datasets.images", "flower.jpg"),
        ("skimage.data", "astronaut.png"),
        ("skimage.data", "ihc.png"),
        ("skimage.data", "gravel.png"),
    ),
}
_PLAN = 256  # side in pixels of the canvas that scenes are planned on
_EMPTY = 0.05  # part of the scenes without a digit
DIGITS = (4, 10)  # of the other scenes, at least and at most, unless told otherwise
_HEIGHT = (1 / 8, 1 / 3)  # of a digit, as part of the image's side
_TURN = 10  # degrees, at most, to either side
_VISIBLE = 0.65  # of a digit at least
_DIM = 0.6  # of a photograph's brightness: light digits stand out, in any colour
_CONTRAST = 0.35  # of luminance between a digit and what lies under it
_TRIES = 20  # positions for a digit; one that finds none is left away
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Scene:
    """An image and what is on it, in the order of pasting.

    Attributes:
        image: (height, width, 3) uint8.
        masks: (n, height, width) bool, the visible pixels of each digit; no two overlap, none is empty.
        labels: (n,) int64, the digits.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(n, 4) x1 y1 x2 y2 around the visible pixels; x2 and y2 lie behind the last one."""
        boxes = np.zeros((len(self.masks), 4))
        for box, mask in zip(boxes, self.masks, strict=True):
            x, y = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
            box[:] = x[0], y[0], x[-1] + 1, y[-1] + 1
        return boxes

    @property
    def semantic(self) -> NDArray[np.uint8]:
        """(height, width) 0 for the background, digit + 1 elsewhere."""
        return ((self.labels + 1)[:, None, None] * self.masks).sum(0).astype(np.uint8)


@dataclass(frozen=True)
class _Placement:
    """A planned digit; lengths are parts of the image's side."""

    digit: int  # index into the digits of the split
    height: float
    turn: float  # degrees
    left: float
    top: float
    colour: NDArray[np.float64]  # (3,) in [0, 1]


def render_scene(
    index: int, *, split: Split = "train", img_size: int = 256, seed: int = 0, digits: tuple[int, int] = DIGITS
) -> Scene:
    """Render one scene, which depends on nothing but the arguments.

    Args:
        index: of the scene.
        split: whose photographs and digits are used.
        img_size: height and width in pixels.
        seed: of the set of scenes.
        digits: how many are tried to place, at least and at most; one scene of twenty has none.

    Returns:
        The scene: about two thirds of each digit at least are visible.

    Raises:
        InputError: the size is below 64, where the smallest digits would be blots, or `digits` are not in order.
    """
    if not 0 <= digits[0] <= digits[1]:
        raise InputError(f"digits must be two numbers, the smaller first, got {tuple(digits)}")
    if img_size < 64:
        raise InputError(f"img_size must be at least 64 pixels, got {img_size}")
    rng = np.random.default_rng([seed, split == "val", index])
    photo, box = _background(split, rng)
    plan = _plan(split, photo, box, digits, rng)
    canvas = np.asarray(photo.resize((img_size, img_size), Image.Resampling.BICUBIC, box), np.float32) * (_DIM / 255)
    masks = np.zeros((len(plan), img_size, img_size), np.bool_)
    for i, placement in enumerate(plan):
        opacity, window = _stamp(split, placement, img_size)
        canvas[window] += opacity[..., None] * (placement.colour.astype(np.float32) - canvas[window])
        masks[:i, *window] &= opacity <= 0.5
        masks[i, *window] = opacity > 0.5
    labels = np.array([_digits(split)[1][placement.digit] for placement in plan], np.int64)
    return Scene((canvas * 255).round().astype(np.uint8), masks, labels)


def _background(split: Split, rng: np.random.Generator) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Returns a photograph and the square of it to show."""
    photos = _photos(split)
    photo = photos[rng.integers(len(photos))]
    side = rng.uniform(0.4, 1) * min(photo.size)
    left, top = rng.uniform(0, 1, 2) * (np.array(photo.size) - side)
    return photo, (left, top, left + side, top + side)


def _plan(
    split: Split,
    photo: Image.Image,
    box: tuple[float, float, float, float],
    digits: tuple[int, int],
    rng: np.random.Generator,
) -> list[_Placement]:
    count = 0 if rng.random() < _EMPTY else rng.integers(digits[0], digits[1] + 1)
    small = np.asarray(photo.resize((_PLAN, _PLAN), Image.Resampling.BILINEAR, box), np.float32) * (_DIM / 255)
    luminance = small @ _LUMA.astype(np.float32)  # of photograph and digits so far
    masks: list[NDArray[np.bool_]] = []
    areas: list[int] = []
    plan: list[_Placement] = []
    for _ in range(count):
        digit = int(rng.integers(len(_digits(split)[1])))
        height = float(np.exp(rng.uniform(*np.log(_HEIGHT))))
        turn = float(rng.uniform(-_TURN, _TURN))
        for _ in range(_TRIES):
            left, top = rng.uniform(0, 1, 2)
            placement = _Placement(digit, height, turn, left, top, np.zeros(3))
            opacity, window = _stamp(split, placement, _PLAN)
            ink = opacity > 0.5
            seen = [mask.sum() - (mask[window] & ink).sum() for mask in masks]
            if all(visible >= _VISIBLE * area for visible, area in zip(seen, areas, strict=True)):
                break
        else:
            continue
        colour = _colour(float(luminance[window][ink].mean()), rng)
        luminance[window][ink] = colour @ _LUMA
        for mask in masks:
            mask[window] &= ~ink
        masks.append(np.zeros((_PLAN, _PLAN), np.bool_))
        masks[-1][window] = ink
        areas.append(int(ink.sum()))
        plan.append(_Placement(digit, height, turn, left, top, colour))
    return plan


def _stamp(split: Split, placement: _Placement, img_size: int) -> tuple[NDArray[np.float32], tuple[slice, slice]]:
    """Returns a digit's opacity (h, w) in [0, 1], and its place in the image. Left and top are of the free room."""
    digit = _digits(split)[0][placement.digit].rotate(placement.turn, Image.Resampling.BICUBIC, expand=True)
    digit = digit.crop(digit.point(lambda value: 255 * (value > 64)).getbbox())
    height = max(round(placement.height * img_size), 2)
    width = max(round(height * digit.width / digit.height), 2)
    ink = np.asarray(digit.resize((width, height), Image.Resampling.BICUBIC)) / 255
    # A steep slope keeps the edge one or two pixels wide at any size; the low threshold makes the strokes bold.
    opacity = np.clip((ink - 0.3) * height / digit.height + 0.5, 0, 1).astype(np.float32)
    x, y = round(placement.left * (img_size - width)), round(placement.top * (img_size - height))
    return opacity, (slice(y, y + height), slice(x, x + width))


def _colour(under: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns a colour (3,) that is lighter than what lies under it, or darker where that leaves no room."""
    low, high = (under + _CONTRAST, 0.95) if under < 0.95 - _CONTRAST else (0.05, under - _CONTRAST)
    target = rng.uniform(low, high)
    colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 1), 1))
    luminance = float(colour @ _LUMA)
    if target < luminance:
        return colour * (target / luminance)
    return colour + (1 - colour) * (target - luminance) / (1 - luminance)


@functools.cache
def _photos(split: Split) -> tuple[Image.Image, ...]:
    photos = []
    for package, name in _PHOTOS[split]:
        with resources.as_file(resources.files(package) / name) as path, Image.open(path) as file:
            photos.append(file.convert("RGB"))
    return tuple(photos)


@functools.cache
def _digits(split: Split) -> tuple[tuple[Image.Image, ...], NDArray[np.int64]]:
    """Returns the digits of a split as grey images with a margin, and their labels."""
    pixels, labels = read_digits()
    chosen = split_digits(labels)[split == "val"]
    images = (pixels[chosen, 0] * 255).round().byte().numpy()
    return tuple(Image.fromarray(image) for image in images), labels[chosen].numpy()
