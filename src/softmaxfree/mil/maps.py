"""What a network of bags looks at: attention of the class token, and what each patch adds to each logit.

Both are in the order that the patches come in, and signed where the network is: nothing is scaled or cut off. Time and
memory are linear in the patches.
"""

from functools import singledispatch
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require, require_whole
from softmaxfree.errors import InputError
from softmaxfree.explain.capture import evaluation
from softmaxfree.mil.bags import Bags, as_bags
from softmaxfree.mil.encoder import BagEncoder
from softmaxfree.mil.pooling import AbstractPooling, most_telling
from softmaxfree.mil.transmil import TransMIL
from softmaxfree.ops.precision import full_precision, widen

__all__ = ["Contributions", "TopPatch", "attention", "contributions", "top_patches"]


class Contributions(NamedTuple):
    """What adds up to the logits of a bag: `patches (classes, N)`, `class_token (classes,)` and `base (classes,)`.

    In TransMIL and BagEncoder a patch's value in the last layer is what counts, into which earlier layers have mixed
    the others; the statistics of the norm behind it are taken as they are.
    """

    patches: Tensor
    class_token: Tensor
    base: Tensor

    @property
    def logits(self) -> Tensor:
        """The sum, `(classes,)`."""
        return self.patches.sum(1) + self.class_token + self.base


class TopPatch(NamedTuple):
    """A patch: its number from 0, its score, and pixels `(x, y)` if coordinates are known."""

    number: int
    score: float
    place: tuple[float, float] | None


def attention(
    model: nn.Module,
    x: Tensor,
    coords: Tensor | None = None,
    *,
    layer: int = -1,
    head: int | Literal["mean", "all"] = "mean",
    step: float | None = None,
) -> Tensor:
    """Returns with which weights the class token of a bag takes the patches.

    Of TransMIL it is the class token's row of `F Z B`; weights of the copies that make a square are added to those of
    their originals, and some weights are negative. Of BagEncoder it is the row that the readout takes. Of pooling it is
    what is pooled with, of max pooling the share of the channels, of instance-max the share of the classes.

    Args:
        model: TransMIL, BagEncoder or a pooling network; it may be in training mode, and is left as it was.
        x: features `(N, in_dim)` or `(1, N, in_dim)`.
        coords: `(N, 2)` or `(1, N, 2)`, for networks that use them.
        layer: number of the layer, from -1 backwards; networks other than TransMIL have one.
        head: number of a head, "mean" of all, or "all".
        step: see `BagEncoder`.

    Returns:
        `(N,)`, for "all" `(heads, N)`.

    Raises:
        InputError: the network has no maps, or there is no such layer or head.
    """
    with torch.no_grad(), evaluation(model):
        bags = _one_bag(model, x, coords)
        with full_precision(bags.x):
            weights = _attention(model, bags, layer, step)
    if head == "all":
        return weights
    if head == "mean":
        return weights.mean(0)
    known = isinstance(head, int) and not isinstance(head, bool) and -len(weights) <= head < len(weights)
    several = f"0 to {len(weights) - 1}, 'mean' or 'all'"
    require(known, "head", head, several if len(weights) > 1 else "0 or 'mean': this network has one head")
    return weights[head]


def contributions(
    model: nn.Module, x: Tensor, coords: Tensor | None = None, *, step: float | None = None
) -> Contributions:
    """Returns what each patch of a bag adds to each logit.

    Args:
        model: as for `attention`.
        x: as for `attention`.
        coords: as for `attention`.
        step: as for `attention`.

    Returns:
        Parts that sum to the logits.

    Raises:
        InputError: the network has no maps.
    """
    with torch.no_grad(), evaluation(model):
        bags = _one_bag(model, x, coords)
        with full_precision(bags.x):
            return _contributions(model, bags, step)


def top_patches(scores: Tensor, count: int, coords: Tensor | None = None) -> list[TopPatch]:
    """Returns the patches with the highest scores, the highest first; of equal ones the first comes first.

    Args:
        scores: `(N,)`.
        count: how many, at most all.
        coords: `(N, 2)` pixels.

    Returns:
        The patches.

    Raises:
        InputError: for an argument out of range.
    """
    require(scores.ndim == 1, "scores", tuple(scores.shape), "(N,), a number for each patch")
    require_whole("count", count, 1)
    if coords is not None and coords.shape != (len(scores), 2):
        raise InputError(f"coords must be ({len(scores)}, 2), got {tuple(coords.shape)}")
    order = scores.argsort(descending=True, stable=True)[:count].tolist()
    places: Any = [None] * len(scores) if coords is None else [tuple(place) for place in coords.tolist()]
    return [TopPatch(number, float(scores[number]), places[number]) for number in order]


def _one_bag(model: nn.Module, x: Tensor, coords: Tensor | None) -> Bags:
    if not isinstance(model, TransMIL | BagEncoder | AbstractPooling):
        raise InputError(f"model must be a network of softmaxfree.mil, got {type(model).__name__}")
    bags = as_bags(x, None, coords if isinstance(model, BagEncoder) else None, model.in_dim)
    require(len(bags.x) == 1, "x", tuple(x.shape), "one bag, (N, D) or (1, N, D)")
    return bags


def _require_last(layer: int) -> None:
    require(layer in (0, -1), "layer", layer, "-1: this network has one layer with a class token")


@singledispatch
def _attention(model: nn.Module, bags: Bags, layer: int, step: float | None) -> Tensor:
    """Returns the weights `(heads, N)`."""
    raise NotImplementedError


@singledispatch
def _contributions(model: nn.Module, bags: Bags, step: float | None) -> Contributions:
    raise NotImplementedError


@_attention.register
def _(model: TransMIL, bags: Bags, layer: int, step: float | None) -> Tensor:
    depth = len(model.layers)
    known = isinstance(layer, int) and not isinstance(layer, bool) and -depth <= layer < depth
    require(known, "layer", layer, f"0 to {depth - 1}, or from -1 backwards")
    own: Any = model.layers[layer]
    row, _ = own.attn.row(own.norm(model.inputs(bags.x[0], layer % depth)), 0)
    return _fold(row[:, 1:], bags.lengths[0])


@_contributions.register
def _(model: TransMIL, bags: Bags, step: float | None) -> Contributions:
    own: Any = model.layers[-1]
    tokens = model.inputs(bags.x[0], len(model.layers) - 1)
    normed = own.norm(tokens)
    weights, values = sum(own.attn.row(normed, 0)), widen(own.attn.values(normed))  # (H, N), (H, N, D)
    mixed, token = (weights[:, None] @ values).flatten(), widen(tokens[0, 0])
    linear: Any = own.attn.to_out[0] if isinstance(own.attn.to_out, nn.Sequential) else None
    behind = token if linear is None else token + widen(linear.bias)
    out = mixed if linear is None else widen(linear.weight) @ mixed
    through, base = _linearised(model.norm, model.head, behind + out)
    per_head = (through if linear is None else through @ widen(linear.weight)).unflatten(1, (len(values), -1))
    parts = torch.einsum("hnd,chd,hn->cn", values, per_head, weights)
    return Contributions(_fold(parts[:, 1:], bags.lengths[0]), parts[:, 0], base + through @ behind)


@_attention.register
def _(model: BagEncoder, bags: Bags, layer: int, step: float | None) -> Tensor:
    _require_last(layer)
    return model.readout.row(model.cls_token, model.encode(bags, step))[0]


@_contributions.register
def _(model: BagEncoder, bags: Bags, step: float | None) -> Contributions:
    patches, read = model.encode(bags, step), model.readout
    through, base = _linearised(model.norm, model.head, widen(model.read(patches, None)[0]))
    values = widen(read.v(patches)[0]).unflatten(1, (read.num_heads, -1))  # (N, H, D)
    per_head = through.unflatten(1, (read.num_heads, -1))
    parts = torch.einsum("nhd,chd,hn->cn", values, per_head, read.row(model.cls_token, patches)[0])
    if read.peak is not None:
        greatest, at = widen(read.peak(patches)[0]).max(0)
        parts = parts.index_add(1, at, through * greatest)
    if model.patch_head is not None:
        of_patches, bias = widen(model.patch_head(patches)[0]), widen(model.patch_head.bias)
        chosen = most_telling(of_patches[None], None)[0]
        parts = parts + torch.zeros_like(of_patches).scatter(0, chosen, of_patches.gather(0, chosen) - bias).mT
        base = base + bias
    return Contributions(parts, through @ widen(model.cls_token[0, 0]), base)


@_attention.register
def _(model: AbstractPooling, bags: Bags, layer: int, step: float | None) -> Tensor:
    _require_last(layer)
    return model.weights(model.embed(bags.x), None).mean(2)


@_contributions.register
def _(model: AbstractPooling, bags: Bags, step: float | None) -> Contributions:
    parts, base = model.terms(model.embed(bags.x), None)[0].mT, widen(model.head.bias)
    return Contributions(parts, torch.zeros_like(base), base.detach())


def _fold(row: Tensor, patches: int) -> Tensor:
    """Returns weights `(K, P)` of patches and copies of the first of them, `(K, patches)`."""
    copies = row[:, patches:]
    return row[:, :patches] + F.pad(copies, (0, patches - copies.shape[1]))


def _linearised(norm: nn.LayerNorm, head: nn.Linear, token: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the linear map `(classes, C)` and the constant that are norm and head at a token `(C,)`."""
    weight = widen(head.weight)
    through = weight * widen(norm.weight)
    through = (through - through.mean(1, keepdim=True)) * (token.var(correction=0) + norm.eps).rsqrt()
    return through, weight @ widen(norm.bias) + widen(head.bias)
