"""Sizes of images of dense tasks: those of files, and those of batches and images where they are "auto"."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from softmaxfree.data import automatic
from softmaxfree.data.images import MIN_SIDE
from softmaxfree.images import shown_shape

__all__ = ["decide_sizes", "shown_shapes"]

_MOST = 512  # of the shorter side, pixels
_BATCH = 2, 8  # least and most
_LONGEST = 2.0  # times the shorter side
_COMMON = 0.95  # part of the images whose longer side is not cut


def decide_sizes(
    data: Any,
    side_name: str,
    side: int | Literal["auto"],
    shapes: Sequence[tuple[int, int]],
    num_train: int,
    zoom: float = 1,
) -> None:
    """Decide batch, image size, longer side and workers of a data module, those of them that are "auto".

    Args:
        data: module with `batch_size`, `num_workers`, `max_size` and `processes`.
        side_name: its argument for the shorter side.
        side: shorter side, pixels, if it is given.
        shapes: height and width of the images.
        num_train: number of images to train on.
        zoom: how much larger than the shorter side a training image may be.
    """
    ratios = sorted(max(shape) / min(shape) for shape in shapes)
    ratio = min(ratios[_common(ratios)], _LONGEST)
    auto = {name for name in ("batch_size", "max_size", "num_workers") if getattr(data, name) == "auto"}
    batch = data.batch_size
    if side == "auto":
        auto.add(side_name)
        most = _MOST if "max_size" in auto else min(_MOST, data.max_size)
        side = automatic.image_size([min(shape) for shape in shapes], most=most)
    if "batch_size" in auto:
        batch = automatic.batch_size(num_train, *_BATCH)
    if auto & {side_name, "batch_size"}:
        memory, kind = automatic.total_memory(data.processes)
        can_change = {"change_batch": "batch_size" in auto, "change_side": side_name in auto}
        fitted = automatic.fitting(batch, side, int(memory / ratio / zoom**2), **can_change)
        whys = f"{num_train} training images", "median of the shorter sides, in steps of 32"
        for name, why, wanted, value in zip(("batch_size", side_name), whys, (batch, side), fitted, strict=True):
            if name in auto:
                less = f"; less, for {memory / 2**30:.1f} GiB of {kind}" if value < wanted else ""
                data.decide(name, value, why + less)
        side = fitted[1]
    if "max_size" in auto:
        longest, why = round(side * ratio * zoom), f"longer side of {_COMMON:.0%} of the images, at most twice"
        needed = _needed(ratios, side)
        if needed > longest:
            longest, why = needed, f"narrow images keep {MIN_SIDE} pixels each way"
        data.decide("max_size", longest, why)
    if "num_workers" in auto:
        pixels = sum(height * width for height, width in shapes) / len(shapes) * num_train
        workers = automatic.num_workers(pixels, data.processes)
        data.decide("num_workers", workers, f"{pixels / 1e6:.0f} megapixels an epoch")


def _needed(ratios: Sequence[float], side: int) -> int:
    """The longer side at which a narrow image keeps a shorter one that the networks can take, also if rounded down.

    It is not that of a few very narrow images, for which a batch of the others would become too large.
    """
    common, narrowest = (math.floor(MIN_SIDE * ratio) + 1 for ratio in (ratios[_common(ratios)], ratios[-1]))
    return max(common, min(narrowest, round(_LONGEST * _MOST**2 / side)))


def _common(ratios: Sequence[float]) -> int:
    return int(_COMMON * (len(ratios) - 1))


def shown_shapes(files: Iterable[Path]) -> list[tuple[int, int] | None]:
    """Return height and width of images by their heads alone; None for one whose head cannot be read.

    Args:
        files: of images.

    Returns:
        The shapes.
    """

    def shape(path: Path) -> tuple[int, int] | None:
        try:
            return shown_shape(path)
        except Exception:  # decoders raise what they like; the loader names it
            return None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(shape, files))
