"""One query under softmax, the exact Gaussian kernel and its low rank: the figure of SOFT."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from softmaxfree.errors import InputError
from softmaxfree.explain.capture import Captured, capture, prepared, seen_size
from softmaxfree.explain.layers import Layer, attention_layers, choose
from softmaxfree.explain.maps import AttentionMap, Query, as_map, check_query, find_token
from softmaxfree.explain.rows import mixer_row, softmax_row
from softmaxfree.mixers import GaussianAttention, SoftmaxFreeAttention, create_mixer

__all__ = ["PHOTOGRAPHS", "Photograph", "photograph_maps", "side_by_side"]

_PATCH = 8  # pixels, so that a photograph has thousands of tokens as the first stage has
_COLOUR, _PLACE = 10.0, 0.3  # distances that count as 1: of CIE Lab, and of the longer side
_BUDGETS = (7, 16)  # side of the landmark grid: of the paper, and the default of the mixer


class Photograph(NamedTuple):
    """A picture that a package brings, and the pixel that asks."""

    package: str
    name: str
    query: tuple[int, int]


PHOTOGRAPHS = (
    Photograph("skimage", "astronaut", (330, 180)),
    Photograph("skimage", "chelsea", (225, 130)),
    Photograph("sklearn", "china.jpg", (330, 120)),
)
"""Those of the figure, with their queries."""


def side_by_side(
    model: nn.Module,
    image: Tensor,
    query: Query = "cls",
    *,
    stage: int | None = None,
    block: int = -1,
    mask: Tensor | None = None,
) -> dict[str, AttentionMap]:
    """Returns the row of one query under three mixers, all with the queries and keys of one layer.

    What differs is the mixing alone: `softmax(q k^T)`, the Gaussian kernel `exp(-|q - k|^2 / 2)` that `soft` comes near
    to, and its low rank through the landmarks of the layer; of a layer that normalises that before it does.

    Args:
        model: as for `explain`; the layer's mixer is `soft`, or `gaussian` with tied keys.
        image: as for `explain`.
        query: as for `explain`.
        stage: as for `explain`; None is the last one with such a mixer.
        block: as for `explain`.
        mask: as for `explain`.

    Returns:
        Maps by what made them.

    Raises:
        InputError: the layer has another mixer, or as for `explain`.
    """
    layers = attention_layers(model)
    if stage is None:
        kinds = SoftmaxFreeAttention | GaussianAttention
        stage = next((own.stage for own in reversed(layers) if isinstance(own.mixing, kinds)), None)
    layer = choose(layers, stage, block)
    mixer: Any = layer.mixing
    if not isinstance(mixer, SoftmaxFreeAttention) and not (isinstance(mixer, GaussianAttention) and mixer.tied):
        kind = getattr(mixer, "name", type(mixer).__name__)
        raise InputError(f"{layer.name} must be of soft, or of gaussian with tied keys, got {kind}")
    x, mask = prepared(model, image, mask)
    size: Any = tuple(x.shape[-2:])
    check_query(query, size, mask)
    captured, seen = capture(model, layer, x, mask), seen_size(model, *size)
    token = find_token(query, captured, layer, seen, size)
    soft: Any = mixer
    label = "low rank"
    if not isinstance(mixer, SoftmaxFreeAttention):
        soft = _low_rank(captured.q, _BUDGETS[-1])
    elif mixer.normalize:  # what it divides by, the exact kernel has not
        soft, label = copy.copy(mixer), "low rank, before it is normalised"
        soft.normalize = False
    return _maps(captured, layer, token, {label: soft}, seen, size)


def _maps(
    captured: Captured,
    layer: Layer,
    token: int | None,
    low_rank: dict[str, SoftmaxFreeAttention],
    seen: tuple[int, int],
    size: tuple[int, int],
) -> dict[str, AttentionMap]:
    heads, width = captured.q.shape[1], captured.q.shape[3]
    exact = create_mixer("gaussian", dim=heads * width, num_heads=heads, device="meta")  # its `mix` has no weights
    valid = None if captured.mask is None else captured.mask.flatten(1)
    if valid is not None:
        valid = torch.nn.functional.pad(valid, (captured.prefix, 0), value=True)[:, None, None]
    rows = {
        "softmax": softmax_row(captured._replace(scale=1.0, mask=valid), token),  # the queries are scaled already
        "exact Gaussian": mixer_row(exact, captured, token),
    }
    rows |= {name: mixer_row(mixer, captured, token) for name, mixer in low_rank.items()}
    return {name: as_map(row, captured, layer, token, name, seen, size) for name, row in rows.items()}


def photograph_maps(photograph: Photograph) -> tuple[np.ndarray, dict[str, AttentionMap]]:
    """Returns a photograph that a package brings, and the row of one of its patches under three mixers.

    No network is at work: query and key of a patch of 8 x 8 pixels are its mean colour (CIE Lab over 10) and its place
    (over 0.3 of the longer side), the same for all mixers.

    Args:
        photograph: which.

    Returns:
        The picture `(H, W, 3)` uint8, whole patches of it, and maps by what made them.
    """
    picture = _read(photograph)
    height, width = (side // _PATCH * _PATCH for side in picture.shape[:2])
    picture = picture[:height, :width]
    q = _tokens(picture)
    grid = height // _PATCH, width // _PATCH
    captured = Captured(q, q, grid, 0, None)
    layer = Layer(photograph.name, nn.Identity(), 0, False, _PATCH)
    size = (height, width)
    token = find_token(photograph.query, captured, layer, size, size)
    low_rank = {f"low rank, {side * side} landmarks": _low_rank(q, side) for side in _BUDGETS}
    return picture, _maps(captured, layer, token, low_rank, size, size)


def _low_rank(q: Tensor, side: int) -> SoftmaxFreeAttention:
    heads, width = q.shape[1], q.shape[3]
    arguments: Any = {"landmark_sampling": "mean", "landmark_grid": (side, side), "value_kernel": 0, "ratio": 2}
    mixer = create_mixer("soft", dim=heads * width, num_heads=heads, device="meta", **arguments)
    assert isinstance(mixer, SoftmaxFreeAttention)
    return mixer


def _read(photograph: Photograph) -> np.ndarray:
    if photograph.package == "sklearn":
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(photograph.name))
    from skimage import data

    return getattr(data, photograph.name)()


def _tokens(picture: np.ndarray) -> Tensor:
    """Returns queries `(1, 1, N, 8)` of patches: three of colour and two of place, and zeros."""
    from skimage.color import rgb2lab

    rows, columns = picture.shape[0] // _PATCH, picture.shape[1] // _PATCH
    lab = rgb2lab(picture).reshape(rows, _PATCH, columns, _PATCH, 3).mean((1, 3)) / _COLOUR
    longer = _PLACE * max(rows, columns)
    y, x = np.meshgrid(np.arange(rows) / longer, np.arange(columns) / longer, indexing="ij")
    features = np.concatenate((lab, y[..., None], x[..., None], np.zeros((rows, columns, 3))), -1)
    features -= features.mean((0, 1))  # distances stay; the logits of softmax are of centred tokens
    return torch.tensor(features.reshape(1, 1, rows * columns, 8), dtype=torch.float32)
