"""A look through masks before a run: which classes there are, and what else."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from tqdm import tqdm

from softmaxfree.data.images import AnnotationError
from softmaxfree.data.mask_classes import show_value
from softmaxfree.errors import InputError

__all__ = ["LabelScan", "count_values", "scan_labels"]

_LEAST = 256  # masks that are looked at, even if all classes are found before
_CHUNK = 64
_MOST = 4096  # values in one mask: more are no classes
_SMALL = 1 << 16


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
        shares = ", ".join(f"{show_value(value)} ({n / total:.1%})" for value, n in sorted(self.pixels.items()))
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
    pixels: Counter[int] = Counter()
    looked = done = 0
    order = np.random.default_rng(0).permutation(count).tolist()
    with _Pool(count, where) as pool:
        while done < count and not (done >= _LEAST and all(pixels[value] for value in wanted)):
            chunk = order[done : done + _CHUNK]
            for counts in pool.counts(read, chunk):
                looked += counts is not None
                pixels.update(counts or {})
            done += len(chunk)
    if done < count:
        rank_zero_info(f"looked at {done} of the {count} masks of {where}")
    return LabelScan({value: pixels[value] for value in sorted(+pixels)}, looked)


def count_values(read: Callable[[int], np.ndarray], names: Sequence[str], where: str) -> list[dict[int, int] | None]:
    """Read all masks.

    Args:
        read: as for `scan_labels`.
        names: of the masks.
        where: of the masks, to be told.

    Returns:
        Of each mask how many pixels have each value; None for one that cannot be read.

    Raises:
        AnnotationError: what `read` raises, or a mask has more values than there can be classes.
    """
    with _Pool(len(names), where) as pool:
        counts = pool.counts(read, range(len(names)))
    for name, found in zip(names, counts, strict=True):
        if found and len(found) > _MOST:
            raise AnnotationError(f"{name} has {len(found)} different values: it is a picture and no mask of classes")
    return counts


class _Pool:
    def __init__(self, count: int, where: str) -> None:
        silent = count <= _LEAST or getattr(rank_zero_only, "rank", 0) != 0
        self.threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self.bar = tqdm(total=count, desc=f"masks of {where}", disable=silent or None, leave=False)

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)
        self.bar.close()

    def counts(self, read: Callable[[int], np.ndarray], indices: Sequence[int]) -> list[dict[int, int] | None]:
        out = []
        for found in self.threads.map(lambda index: _count(read, index), indices):
            out.append(found)
            self.bar.update()
        return out


def _count(read: Callable[[int], np.ndarray], index: int) -> dict[int, int] | None:
    try:
        values = read(index).ravel()
    except AnnotationError:
        raise
    except (InputError, OSError):
        return None
    if values.size and values.min() >= 0 and values.max() < _SMALL:
        counts = np.bincount(values)
        found = counts.nonzero()[0]
        counts = counts[found]
    else:
        found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
