"""Which pixels a query attends to: one row of the token-mixing matrix of a layer, as a map."""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require
from softmaxfree.errors import InputError
from softmaxfree.explain.capture import Captured, capture, prepared, seen_size
from softmaxfree.explain.layers import Layer, attention_layers, choose
from softmaxfree.explain.rows import mixer_row, require_maps, softmax_row

__all__ = ["AttentionMap", "Query", "attention", "explain", "find_token", "to_pixels"]

Query = tuple[int, int] | Literal["cls"]
"""A pixel `(x, y)` of the image, or the class token."""


class AttentionMap(NamedTuple):
    """The weights of one query, and what they belong to.

    `weights` is `(H, Y, X)`, those of each head for the tokens on the grid, float32 or float64, and `prefix` `(H, P)`
    those for the tokens before them, such as the class token; negative ones are as they are. `token` is the query's
    number among all tokens, None for the mean of all queries on the grid. `stride` is the side of a token's cell and
    `seen` the size of the image, both in pixels of what the backbone sees; `size` is that of the image given.
    """

    weights: Tensor
    prefix: Tensor
    token: int | None
    layer: str
    mixer: str
    stride: int
    seen: tuple[int, int]
    size: tuple[int, int]

    @property
    def row_sums(self) -> Tensor:
        """The sum of all weights of each head, `(H,)`: 1 for softmax, anything where rows are not normalised."""
        return self.weights.flatten(1).sum(1) + self.prefix.sum(1)

    def pixels(self, head: int | Literal["all", "mean"] = "mean") -> Tensor:
        """Returns the map at the size of the image; each pixel has the weight of its token.

        Args:
            head: number of a head, "mean" of all, or "all".

        Returns:
            `(H, W)`, or for "all" `(heads, H, W)`.

        Raises:
            InputError: there is no such head.
        """
        return to_pixels(self.of_head(head), self.stride, self.seen, self.size)

    def of_head(self, head: int | Literal["all", "mean"]) -> Tensor:
        """Returns the weights on the grid, `(Y, X)` of a head or the mean of all, `(H, Y, X)` for "all"."""
        count = len(self.weights)
        if head == "all":
            return self.weights
        if head == "mean":
            return self.weights.mean(0)
        known = isinstance(head, int) and not isinstance(head, bool) and -count <= head < count
        require(known, "head", head, f"0 to {count - 1}, 'mean' or 'all'")
        return self.weights[head]


def explain(
    model: nn.Module,
    image: Tensor,
    query: Query = "cls",
    *,
    stage: int | None = None,
    block: int = -1,
    head: int | Literal["all", "mean"] = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    """Returns which pixels a query attends to, `attention(...).pixels(head)`.

    Args:
        model: a network of timm or of this package; it may be in training mode, and is left as it was.
        image: `(C, H, W)` or `(1, C, H, W)`, prepared for the model; of detectors and segmenters in [0, 1].
        query: a pixel `(x, y)` of the image, whose token asks; or "cls", the class token, and in a layer without one
            the mean of all queries.
        stage: number from 0 as in the names of the modules (`stages.0`), from -1 backwards; None is the last one.
        block: number in the stage, likewise.
        head: number of a head, "mean" of all, or "all".
        mask: `(H, W)` bool, True where a pixel is valid; None for no padding.

    Returns:
        `(H, W)`, for "all" `(heads, H, W)`; each pixel has the weight of its token, which may be negative.

    Raises:
        InputError: there is no such layer or head, the query is outside, or the mixer has no maps.
    """
    return attention(model, image, query, stage=stage, block=block, mask=mask).pixels(head)


def attention(
    model: nn.Module,
    image: Tensor,
    query: Query = "cls",
    *,
    stage: int | None = None,
    block: int = -1,
    mask: Tensor | None = None,
) -> AttentionMap:
    """Returns the weights with which the query of a layer takes the values of all tokens.

    The network runs without gradients up to the layer and stops there. Then the row is made from the mixer's own
    factors, in the time and memory of one backward pass of `mix`: linear in the tokens where the mixer is. What a
    network adds to the mixed values (a convolution of them, a gate, the residual sum) is not part of the map.

    Args:
        model: as for `explain`.
        image: as for `explain`.
        query: as for `explain`.
        stage: as for `explain`.
        block: as for `explain`.
        mask: as for `explain`.

    Returns:
        The map of all heads.

    Raises:
        InputError: as for `explain`.
    """
    layer = choose(attention_layers(model), stage, block)
    if layer.mixer is not None:
        require_maps(layer.mixer)  # before the network runs
    x, mask = prepared(model, image, mask)
    size: Any = tuple(x.shape[-2:])
    seen = seen_size(model, *size)
    check_query(query, size, mask)
    captured = capture(model, layer, x, mask)
    token = find_token(query, captured, layer, seen, size)
    if layer.mixer is not None:
        row, name = mixer_row(layer.mixer, captured, token), layer.mixer.name
    else:
        row, name = softmax_row(captured, token), "softmax"
    return as_map(row, captured, layer, token, name, seen, size)


def as_map(
    row: Tensor,
    captured: Captured,
    layer: Layer,
    token: int | None,
    mixer: str,
    seen: tuple[int, int],
    size: tuple[int, int],
) -> AttentionMap:
    """Returns weights `(H, N)` as a map."""
    prefix, weights = row[:, : captured.prefix], row[:, captured.prefix :].unflatten(1, captured.grid)
    return AttentionMap(weights, prefix, token, layer.name, mixer, layer.stride, seen, size)


def check_query(query: Any, size: tuple[int, int], mask: Tensor | None = None) -> None:
    """Raises InputError unless the query is "cls" or a pixel `(x, y)` of an image of this height and width."""
    if isinstance(query, str) and query == "cls":
        return
    pair = isinstance(query, tuple | list) and len(query) == 2
    numbers = pair and all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in query)
    require(numbers, "query", query, "a pixel (x, y) or 'cls'")
    height, width = size
    inside = 0 <= query[0] < width and 0 <= query[1] < height
    require(inside, "query", query, f"inside the image, x from 0 to {width - 1} and y from 0 to {height - 1}")
    if mask is not None and not bool(mask[0, int(query[1]), int(query[0])]):
        raise InputError(f"query must be where the mask is True, got {query!r}, which is padding")


def find_token(
    query: Query, captured: Captured, layer: Layer, seen: tuple[int, int], size: tuple[int, int]
) -> int | None:
    """Returns the number of the token that a query stands for: that whose cell holds the pixel.

    Args:
        query: a pixel `(x, y)` of the image, or "cls".
        captured: tells the grid.
        layer: tells the side of a cell.
        seen: height and width of the image as the backbone sees it.
        size: those of the image.

    Returns:
        The number; None for the mean of all queries.
    """
    if isinstance(query, str):
        return 0 if layer.class_token and captured.prefix else None
    places = []
    for at, own, whole, cells in zip(reversed(query), seen, size, captured.grid, strict=True):
        pixel = int((int(at) + 0.5) * own / whole)
        places.append(min(pixel // layer.stride, cells - 1))
    return captured.prefix + places[0] * captured.grid[1] + places[1]


def to_pixels(cells: Tensor, stride: int, seen: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Returns values of cells `(..., Y, X)` at the pixels of the image, `(..., H, W)`: each the value of its cell."""
    image = cells.repeat_interleave(stride, -2)[..., : seen[0], :].repeat_interleave(stride, -1)[..., : seen[1]]
    if seen == size:
        return image
    flat = F.interpolate(image.reshape(1, -1, *image.shape[-2:]), size=size, mode="nearest-exact")
    return flat.reshape(*image.shape[:-2], *size)


def to_numbers(values: Tensor) -> list[float]:
    """Returns numbers as JSON has them, to six digits."""
    return [float(f"{value:.6g}") for value in values.detach().to("cpu", torch.float64).flatten().tolist()]
