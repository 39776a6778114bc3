"""timm's image transforms, checked, and with a posterize that every Pillow can run."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from timm.data.transforms import str_to_pil_interp

from softmaxfree.data.turns import AnyOrientation
from softmaxfree.errors import InputError

__all__ = ["create_eval_transform", "create_train_transform"]

_NUMBER = r"\d+(\.\d+)?"
_AUTO_AUGMENT = {
    r"rand": rf"(m|n|mmax)\d+|p{_NUMBER}|mstd{_NUMBER}|inc[01]|t(weights|3aw?)",
    r"augmix": rf"[mwd]\d+|a{_NUMBER}|b[01]|mstd{_NUMBER}",
    r"v0r?|originalr?|3a": rf"mstd{_NUMBER}",
}
"""Policies of timm and what may follow each after a dash. timm itself passes over what it does not know."""


def create_eval_transform(data_config: dict[str, Any]) -> Callable[[Image.Image], Any]:
    """Return what prepares a validation image.

    Args:
        data_config: in timm's words: `input_size`, `mean`, `std`, `interpolation`, `crop_pct`.

    Returns:
        From an image to a tensor (channels, height, width).

    Raises:
        InputError: an entry is not allowed.
    """
    _check_interpolation("data.interpolation", data_config["interpolation"])
    if not 0 < data_config["crop_pct"] <= 1:
        raise InputError(f"data.crop_pct must be above 0 and at most 1, got {data_config['crop_pct']}")
    if data_config["input_size"][-1] < 1:
        raise InputError(f"data.img_size must be 1 or more, got {data_config['input_size'][-1]}")
    return create_transform(**data_config)


def create_train_transform(data_config: dict[str, Any], augment: dict[str, Any]) -> Callable[[Image.Image], Any]:
    """Return what prepares and augments a training image.

    Args:
        data_config: as for `create_eval_transform`.
        augment: further arguments of `timm.data.create_transform`, `interpolation` among them; and `orientation`:
            "upright", or "any" for images that have no up, which are also mirrored vertically and turned by quarters.

    Returns:
        From an image to a tensor (channels, height, width).

    Raises:
        InputError: an argument is not allowed.
    """
    augment = dict(augment)
    orientation = augment.pop("orientation", "upright")
    if orientation not in ("upright", "any"):
        raise InputError(f"data.orientation must be upright or any, got {orientation!r}")
    augment["color_jitter"] = _checked_jitter(augment["color_jitter"])
    name = augment["auto_augment"] or None
    if name is not None:
        _check_auto_augment(name)
    if augment["interpolation"] != "random":
        _check_interpolation("data.train_interpolation", augment["interpolation"])
    for key, (low, high) in {key: augment[key] for key in ("scale", "ratio")}.items():
        if not 0 < low <= high:
            raise InputError(f"data.{key} needs two positive numbers in order, got {augment[key]}")
    for key in ("hflip", "re_prob"):
        if not 0 <= augment[key] <= 1:
            raise InputError(f"data.{key} must be a probability from 0 to 1, got {augment[key]}")
    transform: Any = create_transform(**{**data_config, **augment, "auto_augment": name, "is_training": True})
    if orientation == "any":
        transform.transforms.insert(1, AnyOrientation())  # of the crop, which is smaller than the image
    for op in _operations(transform):
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return transform


def _operations(transform: Any) -> Iterator[AugmentOp]:
    for part in transform.transforms:
        if isinstance(part, RandAugment | AugMixAugment):
            yield from part.ops
        elif isinstance(part, AutoAugment):
            yield from (op for policy in part.policy for op in policy)


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keeps the upper bits; of none is left black, which Pillow did itself before version 13."""
    if bits_to_keep >= 8:
        return image
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits_to_keep)


def _checked_jitter(jitter: float | Sequence[float]) -> float | tuple[float, ...]:
    values = tuple(jitter) if isinstance(jitter, Sequence) else (jitter,)
    if len(values) in (1, 3, 4) and min(values) >= 0 and (len(values) < 4 or values[3] <= 0.5):
        return values[0] if len(values) == 1 else values
    raise InputError(
        "data.color_jitter must be one number or [brightness, contrast, saturation] or these with hue, each 0 or more "
        f"and hue at most 0.5, got {jitter}"
    )


def _check_auto_augment(name: str) -> None:
    policy, *options = name.split("-")
    for pattern, allowed in _AUTO_AUGMENT.items():
        if re.fullmatch(pattern, policy):
            wrong = [option for option in options if not re.fullmatch(allowed, option)]
            break
    else:
        wrong = [policy]
    if wrong:
        raise InputError(
            f"data.auto_augment: {name!r} has a part {wrong[0]!r} that timm does not know; such names are "
            "rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original-mstd0.5, v0 and 3a"
        )


def _check_interpolation(key: str, name: str) -> None:
    try:
        str_to_pil_interp(name)
    except KeyError as error:
        raise InputError(f"{key}: {name!r} is none of nearest, bilinear, bicubic, box, hamming, lanczos") from error
