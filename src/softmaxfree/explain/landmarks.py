"""What goes through each landmark of a mixer, and how well the landmarks' matrix is inverted."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.errors import InputError
from softmaxfree.explain.capture import Captured, capture, prepared, seen_size, visit
from softmaxfree.explain.layers import Layer, attention_layers, choose
from softmaxfree.explain.maps import Query, check_query, find_token
from softmaxfree.layers.landmarks import Landmarks
from softmaxfree.mixers import (
    AbstractMixer,
    LinformerAttention,
    NystromAttention,
    RowNormalizedAttention,
    SoftmaxFreeAttention,
)
from softmaxfree.mixers.mixer import valid_tokens
from softmaxfree.ops import gaussian_gram, gaussian_product, pinv
from softmaxfree.ops.nystrom import landmark_core
from softmaxfree.ops.pinv import residual
from softmaxfree.ops.precision import widen

__all__ = ["Factors", "Inverse", "LandmarkImportance", "factors", "inverses", "landmark_importance"]

_TOLD = "whose shares can be told; soft, softn, nystrom and linformer have them"
_ENTRIES = 1 << 24  # of a factor that are there at once


class Factors(NamedTuple):
    """A token-mixing matrix `W = P R` through `M` landmarks, and the matrix that was inverted on the way.

    `of_queries(rows)` is `P (H, n, M)` of queries `rows`, and `of_keys(rows)` is `R` transposed, `(H, n, M)`; None
    for means of values, whose weights sum to 1. `gram` and `inverse` are `(H, M, M)`, None where nothing is inverted.
    """

    of_queries: Callable[[slice], Tensor]
    of_keys: Callable[[slice], Tensor] | None
    landmarks: int
    gram: Tensor | None = None
    inverse: Tensor | None = None


class LandmarkImportance(NamedTuple):
    """How much goes through each landmark.

    `shares` is `(H, M)`; they sum to 1 over the landmarks of a head. `places` are the `(y, x)` of the landmarks in
    pixels of the image, `(M, 2)`. `total` is what the shares are parts of, `(H,)`, a sum over `queries` rows.
    """

    shares: Tensor
    places: Tensor
    total: Tensor
    layer: str
    mixer: str
    queries: int = 1

    @property
    def mean(self) -> Tensor:
        """Share of each landmark in what goes through those of all heads, `(M,)`: heads count by their totals."""
        return (self.shares * self.total[:, None]).sum(0) / self.total.sum()


class Inverse(NamedTuple):
    """The inverse of the landmarks' matrix in one layer.

    `spectrum` is `(H, M)`, largest first: the eigenvalues of the symmetric kernel matrix `A` of `soft` and `softn`,
    the singular values of that of `nystrom`. `residual` is `|A Y A - A| / |A|` of the inverse `Y` of the solver,
    `(H,)`.
    """

    layer: str
    mixer: str
    solver: str
    spectrum: Tensor
    residual: Tensor


def landmark_importance(
    model: nn.Module,
    image: Tensor,
    query: Query | None = None,
    *,
    stage: int | None = None,
    block: int = -1,
    mask: Tensor | None = None,
) -> LandmarkImportance:
    """Returns how much of the attention goes through each landmark.

    The token-mixing matrix is a sum over landmarks, `W = sum_m P_m R_m`, column `m` of queries to landmarks times row
    `m` of landmarks to keys, the inverse included. The importance of a landmark is the sum of the absolute weights of
    its part, `sum_ij |P_im| |R_mj|`, over that of all. Parts of opposite sign may cancel in `W`; here they do not. Keys
    that `softn` keeps exact go through no landmark, and are in no share.

    Args:
        model: as for `explain`.
        image: as for `explain`.
        query: a pixel `(x, y)` or "cls", whose row alone is counted; None counts all queries.
        stage: as for `explain`; None is the last one with landmarks.
        block: as for `explain`.
        mask: as for `explain`.

    Returns:
        Shares and places.

    Raises:
        InputError: the layer has no landmarks, or all keys are exact; or as for `explain`.
    """
    layers = attention_layers(model)
    if stage is None:
        stage = next((layer.stage for layer in reversed(layers) if _has_landmarks(layer.mixing)), None)
    layer = choose(layers, stage, block)
    x, mask = prepared(model, image, mask)
    size: Any = tuple(x.shape[-2:])
    if query is not None:
        check_query(query, size, mask)
    if not _has_landmarks(layer.mixing):
        raise InputError(f"{layer.name} is of {_name(layer.mixing)}, a mixer without landmarks {_TOLD}")
    captured = capture(model, layer, x, mask)
    seen = seen_size(model, *size)
    token = None if query is None else find_token(query, captured, layer, seen, size)
    with torch.no_grad():
        own = factors(layer.mixing, captured)
        first, end = (0, captured.q.shape[2]) if token is None else (token, token + 1)
        to_landmarks = _absolute_sums(own.of_queries, own.landmarks, first, end, captured, token is None)
        through = to_landmarks
        if own.of_keys is not None:
            through = through * _absolute_sums(own.of_keys, own.landmarks, 0, captured.k.shape[2], captured, True)
        total = through.sum(-1)
        if not total.all():
            raise InputError(f"{layer.name}: nothing goes through its landmarks, as all of its keys are exact")
        places = _places(layer.mixing, captured, layer.stride) * torch.tensor(
            [size[0] / seen[0], size[1] / seen[1]], device=through.device
        )
    return LandmarkImportance(through / total[:, None], places, total, layer.name, _name(layer.mixing), end - first)


def inverses(model: nn.Module, image: Tensor, mask: Tensor | None = None) -> list[Inverse]:
    """Returns spectrum and residual of the inverse in each layer that has one.

    Args:
        model: as for `explain`.
        image: as for `explain`.
        mask: as for `explain`.

    Returns:
        One each layer, in order.

    Raises:
        InputError: no layer inverts anything.
    """
    layers = [layer for layer in attention_layers(model) if isinstance(layer.mixing, _INVERTING)]
    if not layers:
        raise InputError("model has no layer that inverts a matrix: of the mixers soft, softn and nystrom do")
    x, mask = prepared(model, image, mask)
    found: list[Inverse] = []

    def look(layer: Layer, captured: Captured) -> None:
        mixer: Any = layer.mixing
        own = factors(mixer, captured)
        assert own.gram is not None
        assert own.inverse is not None
        general = isinstance(mixer, NystromAttention)  # the other matrices are symmetric
        values = torch.linalg.svdvals(own.gram) if general else torch.linalg.eigvalsh(own.gram).flip(-1)
        told = {"name": "third order", "steps": mixer.iterations} if general else mixer.solver.to_dict()
        solver = ", ".join(str(value) if key == "name" else f"{key} {value}" for key, value in told.items())
        missed = residual(own.gram[None], own.inverse[None])[0]
        found.append(Inverse(layer.name, mixer.name, solver, values, missed))

    visit(model, layers, x, mask, look)
    return found


@functools.singledispatch
def factors(mixer: nn.Module, captured: Captured) -> Factors:
    """Returns the factors of what a mixer with landmarks makes of its queries and keys.

    Args:
        mixer: `soft`, `softn`, `nystrom`, or `linformer` with means of windows.
        captured: the queries and keys.

    Returns:
        The factors; landmarks that a mask leaves out are not among them.

    Raises:
        InputError: the mixer has no landmarks.
    """
    raise InputError(f"{_name(mixer)} is a mixer without landmarks {_TOLD}")


@factors.register
def _soft(mixer: SoftmaxFreeAttention, captured: Captured) -> Factors:
    q, k = captured.q, captured.k
    points = mixer.landmarks(q[:, :, captured.prefix :], list(captured.grid), captured.mask).to(q.dtype)
    if captured.mask is not None:
        points = points[:, :, mixer.landmarks.valid(captured.mask)[0]]
    gram = gaussian_gram(points)
    inverse = pinv(gram, mixer.solver)
    core = landmark_core(points, mixer.solver.json, mixer.normalize, None)
    unit = torch.eye(points.shape[2], dtype=core.dtype, device=core.device).expand_as(core).contiguous()

    def kernel(x: Tensor, matrix: Tensor) -> Callable[[slice], Tensor]:
        return lambda rows: gaussian_product(x[:, :, rows].contiguous(), points, matrix)[0]

    return Factors(kernel(q, unit), kernel(k, core.mT.contiguous()), points.shape[2], gram[0], inverse[0])


@factors.register
def _softn(mixer: RowNormalizedAttention, captured: Captured) -> Factors:
    grid, prefix = list(captured.grid), captured.prefix
    to_landmarks, through, points = mixer.landmark_factors(captured.q, captured.k, grid, captured.mask)
    if captured.mask is not None:
        valid = mixer.landmarks.valid(captured.mask)[0]
        to_landmarks, through, points = to_landmarks[..., valid], through[:, :, valid], points[:, :, valid]
    of_keys = F.pad(through, (prefix, 0))[0].mT  # prefix tokens are exact keys
    gram = gaussian_gram(points)
    return Factors(
        lambda rows: to_landmarks[0, :, rows],
        lambda rows: of_keys[:, rows],
        points.shape[2],
        gram[0],
        pinv(gram, mixer.solver)[0],
    )


@factors.register
def _nystrom(mixer: NystromAttention, captured: Captured) -> Factors:
    grid, mask, prefix = list(captured.grid), captured.mask, captured.prefix
    q, k = widen(captured.q), widen(captured.k)
    of_queries, of_keys = (mixer.landmarks(x[:, :, prefix:], grid, mask) for x in (q, k))
    if mask is not None:
        valid = mixer.landmarks.valid(mask)[0]
        of_queries, of_keys = of_queries[:, :, valid], of_keys[:, :, valid]
    gram = (of_queries @ of_keys.mT * mixer.scale).softmax(-1)
    inverse = mixer.inverse(of_queries, of_keys, None)
    logits = of_queries @ k.mT * mixer.scale
    if mask is not None:
        logits = logits.masked_fill(~valid_tokens(mask, logits.shape[-1])[:, None, None], -torch.inf)
    normalizer = logits.logsumexp(-1, keepdim=True)
    return Factors(
        lambda rows: (q[:, :, rows] @ of_keys.mT * mixer.scale).softmax(-1)[0],
        lambda rows: (inverse @ (logits[..., rows] - normalizer).exp())[0].mT,
        of_keys.shape[2],
        gram[0],
        inverse[0],
    )


@factors.register
def _linformer(mixer: LinformerAttention, captured: Captured) -> Factors:
    if not _has_landmarks(mixer):
        raise InputError("linformer with learned sums (rank) has no landmarks that have a place")
    grid, mask, prefix = list(captured.grid), captured.mask, captured.prefix
    q, k = widen(captured.q), widen(captured.k)
    means = mixer.landmarks(k[:, :, prefix:], grid, mask)
    valid = None if mask is None else mixer.landmarks.valid(mask)
    if valid is not None:
        means = means[:, :, valid[0]]
    keys = torch.cat((k[:, :, :prefix], means), 2).mT * mixer.scale
    return Factors(lambda rows: (q[:, :, rows] @ keys).softmax(-1)[0, :, :, prefix:], None, means.shape[2])


_INVERTING = (SoftmaxFreeAttention, RowNormalizedAttention, NystromAttention)


def _has_landmarks(module: Any) -> bool:
    return isinstance(module, _INVERTING) or (isinstance(module, LinformerAttention) and not module.rank)


def _name(module: nn.Module) -> str:
    return module.name if isinstance(module, AbstractMixer) else type(module).__name__


def _absolute_sums(
    factor: Callable[[slice], Tensor], count: int, first: int, end: int, captured: Captured, masked: bool
) -> Tensor:
    """Returns `(H, M)`: the sum of absolute values over the valid rows of a factor."""
    heads = captured.q.shape[1]
    valid = valid_tokens(captured.mask, end)[0] if masked and captured.mask is not None else None
    total: Any = 0
    step = max(1, _ENTRIES // (heads * count))
    for at in range(first, end, step):
        rows = slice(at, min(at + step, end))
        part = factor(rows).abs()
        total = total + (part if valid is None else part * valid[rows][:, None]).sum(1)
    return total


def _places(mixer: Any, captured: Captured, stride: int) -> Tensor:
    """Returns where the landmarks are, `(M, 2)`: y and x of the middles of their tokens, in pixels."""
    sampler = mixer.landmarks
    if sampler.conv is not None:  # stands for the same windows as the means do
        sampler = Landmarks(1, sampler.ratio, sampling="mean", max_grid=sampler.max_grid and tuple(sampler.max_grid))
    rows, columns = captured.grid
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    tokens = torch.stack((y, x), -1).view(1, 1, math.prod(captured.grid), 2).to(captured.q.device, torch.float32)
    places = (sampler(tokens, list(captured.grid), captured.mask)[0, 0] + 0.5) * stride
    return places if captured.mask is None else places[sampler.valid(captured.mask)[0]]
