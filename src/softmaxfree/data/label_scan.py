"""A look through masks before a run: which classes there are, and what else."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from tqdm import tqdm

from softmaxfree.data.images import AnnotationError
from softmaxfree.errors import InputError

__all__ = ["LabelScan", "scan_labels"]

_LEAST = 256  # masks that are looked at, even if all classes are found before
_CHUNK = 64


class LabelScan(NamedTuple):
    """What was found.

    Attributes:
        pixels: how many have each value.
        looked: number of masks that were read.
    """

    pixels: dict[int, int]
    looked: int

    def __str__(self) -> str:
        total = sum(self.pixels.values())
        shares = ", ".join(f"{value} ({n / total:.1%})" for value, n in sorted(self.pixels.items()))
        return f"the {self.looked} masks hold the values {shares}"


def scan_labels(read: Callable[[int], np.ndarray], count: int, wanted: Sequence[int], where: str) -> LabelScan:
    """Read masks in an order of chance that is always the same, until each wanted value was seen, or all masks.

    Args:
        read: from an index to the values of a mask. One that cannot be read is passed over, as the loader names it.
        count: number of masks.
        wanted: values.
        where: of the masks, to be told.

    Returns:
        The values found.

    Raises:
        AnnotationError: what `read` raises.
    """
    pixels = np.zeros(0, np.int64)
    looked = done = 0
    silent = count <= _LEAST or getattr(rank_zero_only, "rank", 0) != 0
    order = np.random.default_rng(0).permutation(count)
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=count, desc=f"masks of {where}", disable=silent or None, leave=False) as bar,
    ):
        while done < count and not (done >= _LEAST and _all_in(wanted, pixels)):
            chunk = order[done : done + _CHUNK]
            for counts in pool.map(lambda index: _count(read, int(index)), chunk):
                if counts is not None:
                    looked += 1
                    pixels = np.pad(pixels, (0, max(0, len(counts) - len(pixels))))
                    pixels[: len(counts)] += counts
            done += len(chunk)
            bar.update(len(chunk))
    if done < count:
        rank_zero_info(f"looked at {done} of the {count} masks of {where}")
    return LabelScan({int(value): int(pixels[value]) for value in pixels.nonzero()[0]}, looked)


def _count(read: Callable[[int], np.ndarray], index: int) -> np.ndarray | None:
    try:
        return np.bincount(read(index).ravel())
    except AnnotationError:
        raise
    except (InputError, OSError):
        return None


def _all_in(wanted: Sequence[int], pixels: np.ndarray) -> bool:
    return max(wanted) < len(pixels) and bool(pixels[list(wanted)].all())
