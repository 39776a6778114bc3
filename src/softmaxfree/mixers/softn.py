"""Softmax attention as a row-normalised Gaussian kernel with weighted keys, through landmarks.

With `q' = q - mean(q)` and `k' = k - mean(k)` over the tokens, softmax attention is exactly

    exp(q_i . k_j) / sum  =  exp(-|q'_i - k'_j|^2 / 2) w_j / sum,    w_j = exp(mean(q) . k'_j + |k'_j|^2 / 2),

since what is left over depends on the query alone and cancels in the row. So a trained softmax attention keeps its
queries and keys, and the kernel is decomposed as in SOFT (eq. 9). Centred, points lie near each other, so that few
landmarks tell the kernel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_number, require_whole
from softmaxfree.mixers.mixer import AbstractAttention, num_valid, require_flag, zero_tokens
from softmaxfree.mixers.neighbours import corrections
from softmaxfree.mixers.registry import register
from softmaxfree.mixers.rows import in_rows
from softmaxfree.mixers.windows import window_means
from softmaxfree.ops import AbstractPinvSolver, Cholesky, as_solver
from softmaxfree.ops.nystrom import landmark_core
from softmaxfree.ops.precision import full_precision, widen

_LOG2_E = 1 / math.log(2)
_SOLVER = Cholesky(ridge=0.1)


class _Decomposition(NamedTuple):
    """The `M` landmarks, of them and the `E` exact keys the logits `q . points + offsets` and the sums they weigh.

    `through` is `(B, H, M, N)` where it is kept whole, over 2 to the power of `scale`; `places` are the exact keys.
    """

    landmarks: Tensor
    points: Tensor
    offsets: Tensor
    sums: Tensor
    through: Tensor | None
    scale: Tensor
    places: Tensor
    k_mean: Tensor


@register
class RowNormalizedAttention(AbstractAttention):
    """Softmax attention through the Gaussian kernel `K(x, y) = exp(-|x - y|^2 / 2)` of centred queries and keys.

    Each row is `K(q', l) A+ K(l, k') w v` over the same of ones, `A = K(l, l)`, with landmarks `l` that are means of
    windows of keys. The keys of prefix tokens and the `exact_keys` of greatest weight are kept outside of the
    decomposition: few keys, such as that of a class token, have most of the weight in trained networks. Factors that
    cancel in a row are left out, so that rows far from all landmarks keep their precision. The decomposition can be
    negative; a denominator is at least `floor` of the sum of its terms' magnitudes. Heads that see the neighbours of a
    token alone are of no low rank: with `near`, keys near a query have exact weights, too.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        ratio: side of the windows.
        landmark_grid: most landmarks along each axis of the grid, two numbers, or one for sequences; more are averaged.
        solver: inverts the landmark kernel matrix: a solver, its `to_dict()`, or its name.
        exact_keys: how many keys of the grid are exact.
        floor: least denominator, as a part of the sum of magnitudes.
        near: how many tokens around a query its keys are exact at least, on a grid of two axes; 0 for none.
        maps: whether queries and keys go through a matrix of each head, `D x D`, which begins as the identity.
        device: of the weights.
        dtype: of the weights.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "softn"
    source = "SOFT, NeurIPS 2021, with rows normalised"
    approximates = "softmax"
    adjustable = ("solver", "landmark_grid")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        ratio: int = 1,
        landmark_grid: Sequence[int] = (12, 12),
        solver: AbstractPinvSolver | Mapping[str, Any] | str = _SOLVER,
        exact_keys: int = 16,
        floor: float = 0.1,
        near: int = 0,
        maps: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, device=device, dtype=dtype, **common)
        require_whole("exact_keys", exact_keys, 0)
        require_number("floor", floor, 0, 1)
        require_whole("near", near, 0)
        require_flag("maps", maps)
        self.landmarks = window_means(ratio, landmark_grid)
        self.ndims = (len(landmark_grid),)
        require(not near or len(landmark_grid) == 2, "near", near, "0 for sequences")
        self.ratio, self.exact_keys, self.floor, self.near, self.maps = ratio, exact_keys, floor, near, maps
        self.q_map = self.k_map = None
        if maps:
            one = torch.eye(self.head_dim, device=device, dtype=dtype).repeat(num_heads, 1, 1)
            self.q_map, self.k_map = nn.Parameter(one), nn.Parameter(one.clone())
        self.adjust(solver=solver)

    @property
    def min_grid(self) -> int:
        """Least number of tokens along each axis: one window."""
        return self.ratio

    @property
    def landmark_grid(self) -> list[int]:
        """The landmark budget."""
        return list(self.landmarks.max_grid or ())

    def adjust(self, **changes: Any) -> None:
        """Changes `solver` or `landmark_grid`, see the constructor.

        Args:
            **changes: new values.

        Raises:
            InputError: there is no such argument, or the value is out of range.
        """
        if "solver" in changes:
            self.solver = as_solver(changes.pop("solver"))
        if "landmark_grid" in changes:
            grid = changes.pop("landmark_grid")
            numbers = isinstance(grid, Sequence) and not isinstance(grid, str)
            require(numbers, "landmark_grid", grid, "a whole number for each axis: softn always has a budget")
            self.landmarks.set_max_grid(tuple(grid))
        super().adjust(**changes)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`; there may be more or fewer queries than keys where there is no mask."""
        with full_precision(v):
            dtype = v.dtype
            q, k, v = widen(q), widen(k), widen(v)
            near = self.near > 0 and q.shape[2] == k.shape[2]
            own = self._decompose(q, k, v, grid, mask, whole=near)
            if not near or own.through is None:
                return in_rows(
                    lambda some: _normalised(_sums(some, own.points, own.offsets, own.sums)[0], self.floor),
                    q,
                    own.points,
                ).to(dtype)
            return _normalised(self._sums_near(q, k, v, own, grid, mask)[0], self.floor).to(dtype)

    def landmark_factors(
        self, q: Tensor, k: Tensor, grid: list[int], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what goes through the landmarks.

        The mixing matrix is `P R` but where a key is exact: that of a prefix token, one of the `exact_keys`, or with
        `near` one around the query. Rows are normalised by all that is mixed, what is exact included.

        Args:
            q: queries, as for `mix`.
            k: keys, as many.
            grid: as for `mix`.
            mask: as for `mix`.

        Returns:
            `P (B, H, N, M)`, `R (B, H, M, n)` of the `n` keys of the grid, and the landmarks `(B, H, M, D)`, of which
            `K` makes the matrix that is inverted; what a mask leaves out is 0 in `P`.
        """
        with full_precision(q):
            q, k = widen(q), widen(k)
            own = self._decompose(q, k, k, grid, mask, whole=True)
            assert own.through is not None
            if self.near > 0:
                out, kernel = self._sums_near(q, k, k, own, grid, mask)
            else:
                out, kernel, _ = _sums(q, own.points, own.offsets, own.sums)
            to_landmarks = kernel[..., : own.landmarks.shape[2]] / _denominators(out, self.floor)
            return to_landmarks, own.through, own.landmarks * self.scale**0.5

    def _decompose(
        self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None, whole: bool
    ) -> _Decomposition:
        prefix = k.shape[2] - math.prod(grid)
        q_mean, k_mean = _mean(q, mask), _mean(k, mask)
        valid = None if mask is None else self.landmarks.valid(mask)
        of_grid = k[:, :, prefix:]
        places, there = self._heaviest(q_mean - k_mean, of_grid, mask)
        # means, maps and scale go to the few points: no token is changed
        landmarks = self.landmarks(of_grid, grid, mask) - k_mean
        if valid is not None:  # those of the padding may be far away, and would cost the others their digits
            landmarks = landmarks.masked_fill(~valid[:, None, :, None], 0.0)
        landmarks = _mapped(landmarks, self.k_map)
        q_mean = _mapped(q_mean, self.q_map)
        unit = self.scale * _LOG2_E  # makes logits to base 2, whose exponential is faster
        halves = landmarks.square().sum(-1) * (unit / 2)
        points = unit * _mapped(landmarks + q_mean, self.k_map, back=True)
        sizes = -halves - (points @ k_mean.mT).squeeze(-1)
        inverse = landmark_core(landmarks * self.scale**0.5, self.solver.json, False, valid).to(k.dtype)
        parts = (inverse, points, sizes, of_grid, v[:, :, prefix:], places, mask, valid)
        through, sums, scale = _whole(*parts) if whole else _summary(*parts)
        keys, values = (_exact(x, places, prefix) for x in (k, v))
        keys = torch.cat([landmarks, _mapped(keys - k_mean, self.k_map)], 2)
        points = unit * _mapped(keys, self.q_map, back=True)
        offsets = -halves - unit * (landmarks @ q_mean.mT).squeeze(-1)
        if valid is not None:
            offsets = _without(offsets, ~valid.unsqueeze(1))
        there = F.pad(there, (prefix, 0), value=True)
        offsets = torch.cat([offsets, _without(-scale.expand(there.shape), ~there)], -1)
        values = torch.cat([values, values.new_ones((*values.shape[:3], 1))], -1)
        sums = torch.cat([sums, values], 2)
        sums = torch.cat([sums, sums[..., -1:].abs()], -1)
        return _Decomposition(landmarks, points, offsets, sums, through, scale, places, k_mean)

    def _sums_near(
        self, q: Tensor, k: Tensor, v: Tensor, own: _Decomposition, grid: list[int], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns weighted sums where keys near a query have exact weights, and the kernel, see `_sums`."""
        assert own.through is not None
        prefix, unit = k.shape[2] - math.prod(grid), self.scale * _LOG2_E
        of_grid = k[:, :, prefix:]
        out, kernel, top = _sums(q, own.points, own.offsets, own.sums)
        near_keys = unit * _mapped(_mapped(of_grid - own.k_mean, self.k_map), self.q_map, back=True)
        less = torch.cat([q, top + own.scale.unsqueeze(-1)], -1)[:, :, prefix:]
        counted = _kept(of_grid[..., 0], own.places, mask)
        of_landmarks = kernel[:, :, prefix:, : own.landmarks.shape[2]]
        extra = corrections(less, near_keys, of_landmarks, own.through, v[:, :, prefix:], counted, grid, self.near)
        return out + F.pad(extra, (0, 0, prefix, 0)), kernel

    def _heaviest(self, shift: Tensor, k: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the places of the keys of greatest weight before the maps, `(B, H, exact_keys)`, and which are keys.

        `log w` is `mean(q) . k' + |k'|^2 / 2`, but for a constant `(mean(q) - mean(k)) . k + |k|^2 / 2`. A grid of
        fewer cells is padded, so that exported programs need no choice.
        """
        with torch.no_grad():
            weight = torch.linalg.vector_norm(k, dim=-1).square() / 2 + (k @ shift.mT).squeeze(-1)
            if mask is not None:
                weight = weight.masked_fill(~mask.flatten(1).unsqueeze(1), -torch.inf)
            found = F.pad(weight, (0, self.exact_keys), value=-torch.inf).topk(self.exact_keys)
            # with fewer cells than places all cells are taken, also the last one
            return found.indices.clamp_max(k.shape[2] - 1), found.values > -torch.inf


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean of the valid tokens, `(B, H, 1, D)`."""
    if mask is None:
        return x.mean(2, keepdim=True)
    return zero_tokens(x, mask).sum(2, keepdim=True) / num_valid(mask, x)


def _mapped(x: Tensor, own: Tensor | None, back: bool = False) -> Tensor:
    """Returns points through a map, or through its transpose: `(x M) . y = x . (y M^T)`."""
    return x if own is None else x @ (own.mT if back else own).to(x.dtype)


def _exact(x: Tensor, places: Tensor, prefix: int) -> Tensor:
    """Returns the prefix tokens and those at places of the grid, `(B, H, P + exact_keys, D)`."""
    chosen = (places + prefix).unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
    return torch.cat([x[:, :, :prefix], x.gather(2, chosen)], 2)


def _least(x: Tensor) -> float:
    return torch.finfo(x.dtype).min / 8


def _without(logits: Tensor, where: Tensor) -> Tensor:
    return logits.masked_fill(where, _least(logits))


def _logits(points: Tensor, k: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
    """Returns logits of landmarks and keys, `(B, H, M, N)`, without the exact keys and the padding."""
    logits = points @ k.mT
    logits = logits.scatter_(-1, places.unsqueeze(2).expand(-1, -1, points.shape[2], -1), _least(logits))
    return logits if mask is None else logits.masked_fill_(~mask.flatten(1)[:, None, None], _least(logits))


def _summary(
    inverse: Tensor,
    points: Tensor,
    sizes: Tensor,
    k: Tensor,
    v: Tensor,
    places: Tensor,
    mask: Tensor | None,
    valid: Tensor | None,
) -> tuple[None, Tensor, Tensor]:
    """Returns None, `A+ K(l, k) w (v, 1)` without the exact keys over 2 to the power of `scale`, and `scale (B, H, 1)`.

    `|k|^2` cancels: `-|l - k'|^2 / 2 + log w = (l + mean(q)) . k' - |l|^2 / 2`, here `points . k + sizes`.
    """

    def rows(some: Tensor) -> Tensor:
        logits = _logits(some, k, places, mask)
        top = logits.detach().amax(-1, keepdim=True)
        top = top.masked_fill(top <= _least(top), 0.0)  # no key is left
        kernel = logits.sub_(top).exp2_()
        return torch.cat([kernel @ v, kernel.sum(-1, keepdim=True), top], -1)

    found = in_rows(rows, points, k)
    size = found[..., -1] + sizes
    if valid is not None:
        size = _without(size, ~valid.unsqueeze(1))
    scale = size.detach().amax(-1, keepdim=True)
    return None, inverse @ (found[..., :-1] * (size - scale).exp2().unsqueeze(-1)), scale


def _whole(
    inverse: Tensor,
    points: Tensor,
    sizes: Tensor,
    k: Tensor,
    v: Tensor,
    places: Tensor,
    mask: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `A+ K(l, k) w` over 2 to the power of `scale`, `(B, H, M, N)`, and as `_summary`."""
    logits = _logits(points, k, places, mask) + sizes.unsqueeze(-1)
    if valid is not None:
        logits = _without(logits, ~valid[:, None, :, None])
    scale = logits.detach().amax((-2, -1)).unsqueeze(-1)
    scale = scale.masked_fill(scale <= _least(scale) / 2, 0.0)  # no key is left
    through = inverse @ (logits - scale.unsqueeze(-1)).exp2()
    return through, torch.cat([through @ v, through.sum(-1, keepdim=True)], -1), scale


def _kept(like: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
    """Returns which keys of the grid are not exact already, `(B, H, N)` bool."""
    kept = torch.ones_like(like, dtype=torch.bool).scatter(-1, places, False)
    return kept if mask is None else kept & mask.flatten(1).unsqueeze(1)


def _sums(q: Tensor, points: Tensor, offsets: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns weighted sums for queries `(B, H, n, D)`, the kernel, and to base 2 what its rows are over."""
    logits = (q @ points.mT).add_(offsets.unsqueeze(-2))
    top = logits.detach().amax(-1, keepdim=True)
    kernel = logits.sub_(top).exp2_()
    return kernel @ sums, kernel, top


def _normalised(out: Tensor, floor: float) -> Tensor:
    """Returns sums over denominators; `|q|^2` cancels, as all of a row's scale."""
    return out[..., :-2] / _denominators(out, floor)


def _denominators(out: Tensor, floor: float) -> Tensor:
    least = torch.maximum(floor * out[..., -1:], out.new_full((), torch.finfo(out.dtype).tiny))
    return torch.maximum(out[..., -2:-1], least)
