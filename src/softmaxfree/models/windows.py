"""An image seen at several scales, or in windows that slide over it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from softmaxfree.errors import InputError

__all__ = ["at_scales", "bands", "largest", "slide"]

Network = Callable[[list[Tensor]], list[Tensor]]  # from images to logits


def at_scales(network: Network, images: Sequence[Tensor], scales: Sequence[float]) -> list[Tensor]:
    """Returns logits from the mean of the probabilities at several scales ("multi-scale testing").

    Args:
        network: from images to logits, in evaluation mode.
        images: `(3, h, w)` each, in [0, 1].
        scales: ratios to the size of each image.

    Returns:
        Logits `(num_classes, h, w)`, one of each image: those of the network where the only scale is 1, otherwise
        logarithms of probabilities.

    Raises:
        InputError: there is no scale, or one is not positive.
    """
    if not scales or min(scales) <= 0:
        raise InputError(f"scales must be positive ratios, at least one, got {list(scales)}")
    if list(scales) == [1]:
        return network(list(images))
    seen: list[list[Tensor]] = []
    for scale in scales:
        sizes = [[max(1, round(side * scale)) for side in image.shape[-2:]] for image in images]
        logits = network([_resized(image, size) for image, size in zip(images, sizes, strict=True)])
        seen.append(
            [_resized(own, list(image.shape[-2:])).log_softmax(0) for own, image in zip(logits, images, strict=True)]
        )
    return [torch.stack(each).logsumexp(0) - math.log(len(scales)) for each in zip(*seen, strict=True)]


def _resized(x: Tensor, size: list[int]) -> Tensor:
    return x if list(x.shape[-2:]) == size else F.interpolate(x[None], size=size, mode="bilinear", antialias=True)[0]


def slide(
    network: Network,
    image: Tensor,
    window: tuple[int, int] = (512, 512),
    stride: tuple[int, int] = (341, 341),
    batch_size: int = 8,
) -> Tensor:
    """Returns logits averaged over overlapping windows, as long as an image is larger than one.

    Args:
        network: in evaluation mode.
        image: `(3, h, w)`, in [0, 1].
        window: height and width, pixels.
        stride: from one window to the next, pixels; the last ones end at the border.
        batch_size: windows at a time.

    Returns:
        Logits `(num_classes, h, w)`.

    Raises:
        InputError: the stride is not from 1 to the window's side, which would leave gaps.
    """
    return torch.cat(list(bands(network, image, window, stride, batch_size)), 1)


def bands(
    network: Network, image: Tensor, window: tuple[int, int], stride: tuple[int, int], batch_size: int = 8
) -> Iterator[Tensor]:
    """Yields the logits of `slide` from the top down, in bands of rows that no further window covers; its arguments."""
    if not all(1 <= step <= side for step, side in zip(stride, window, strict=True)):
        raise InputError(f"stride must be from 1 to the window's side, {tuple(window)}, got {tuple(stride)}")
    height, width = image.shape[-2:]
    rows, columns = min(window[0], height), min(window[1], width)
    tops, lefts = list(_starts(height, rows, stride[0])), list(_starts(width, columns, stride[1]))
    total: Tensor | None = None
    for top, below in zip(tops, [*tops[1:], height], strict=True):
        row = image[:, top : top + rows]
        row = row if image.is_floating_point() else row / 255
        crops = [row[:, :, left : left + columns] for left in lefts]
        logits = [own for i in range(0, len(crops), batch_size) for own in network(crops[i : i + batch_size])]
        sums = logits[0].new_zeros(len(logits[0]) + 1, rows, width)  # the last is how many windows there are
        if total is not None:
            sums[:, : total.shape[1]] = total
        for left, own in zip(lefts, logits, strict=True):
            sums[:-1, :, left : left + columns] += own
            sums[-1, :, left : left + columns] += 1
        done, total = sums[:, : below - top], sums[:, below - top :]
        yield done[:-1] / done[-1]


def largest(logits: Iterable[Tensor]) -> Tensor:
    """Returns the number of the largest of the maps `(h, w)`, of which two are held at a time; the first of equals."""
    best: Tensor | None = None
    for label, own in enumerate(logits):
        if best is None:
            best, classes = own.clone(), torch.zeros(own.shape, dtype=torch.int16, device=own.device)
        else:
            larger = own > best
            classes.masked_fill_(larger, label)
            torch.maximum(best, own, out=best)
    return classes if label > 255 else classes.to(torch.uint8)


def _starts(size: int, window: int, stride: int) -> Iterator[int]:
    steps = -(-(size - window) // stride)
    return (min(i * stride, size - window) for i in range(steps + 1))
