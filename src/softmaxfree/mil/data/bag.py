"""A bag, and a batch of bags of unequal sizes."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Bag", "BagBatch", "collate"]


class Bag(NamedTuple):
    """One slide, or another set of instances.

    Attributes:
        features: `(N, D)` float, in the precision of the file.
        label: `()` int64 class; of survival `(3,)` float64: bin, whether the event was seen, time.
        coords: `(N, 2)` float64, level-0 pixels (x, y); None where they are not known.
        step: distance of neighbours in these pixels; None where it is not known.
        instances: `(N,)` int64 labels of the instances, -1 where one is not known; None where none is.
        size: by which the report sorts bags.
        number: of the bag in its split.
    """

    features: Tensor
    label: Tensor
    coords: Tensor | None
    step: float | None
    instances: Tensor | None
    size: int
    number: int


class BagBatch(NamedTuple):
    """Bags, padded on the right to the longest.

    Attributes:
        features: `(B, N, D)`, 0 in the padding, in the widest precision of the bags.
        mask: `(B, N)` bool, True for an instance; None where no bag is padded.
        coords: `(B, N, 2)` float64; None unless all bags have them.
        step: `(B,)` float64; None unless all bags have it.
        labels: `(B,)` int64 or `(B, 3)` float64.
        instances: `(B, N)` int64, -1 in the padding and of bags that have none; None where no bag has them.
        sizes: `(B,)` int64.
        numbers: `(B,)` int64.
    """

    features: Tensor
    mask: Tensor | None
    coords: Tensor | None
    step: Tensor | None
    labels: Tensor
    instances: Tensor | None
    sizes: Tensor
    numbers: Tensor


def collate(bags: Sequence[Bag]) -> BagBatch:
    """Pad bags to the longest; of a single bag nothing is copied.

    Args:
        bags: one or more.

    Returns:
        The batch.
    """
    lengths = [len(bag.features) for bag in bags]
    longest = max(lengths)
    padded = min(lengths) < longest
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None] if padded else None
    steps = [bag.step for bag in bags]
    instances = [bag.instances for bag in bags]
    if any(own is not None for own in instances):  # else the labels of a bag would depend on its batch mates
        instances = [torch.full((n,), -1) if own is None else own for n, own in zip(lengths, instances, strict=True)]
    return BagBatch(
        _padded([bag.features for bag in bags], 0, longest),
        mask,
        _optional([bag.coords for bag in bags], 0, longest),
        None if None in steps else torch.tensor(steps, dtype=torch.float64),
        torch.stack([bag.label for bag in bags]),
        _optional(instances, -1, longest),
        torch.tensor([bag.size for bag in bags]),
        torch.tensor([bag.number for bag in bags]),
    )


def _optional(parts: list[Tensor | None], fill: int, longest: int) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return _padded(there, fill, longest) if len(there) == len(parts) else None


def _padded(parts: list[Tensor], fill: int, longest: int) -> Tensor:
    if len(parts) == 1:
        return parts[0][None]
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    out = parts[0].new_full((len(parts), longest, *parts[0].shape[1:]), fill, dtype=dtype)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out
