"""Multi-head linear attention: states of blocks of tokens, mixed by a learned matrix (MHLA, ICLR 2026)."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require, require_whole_numbers
from softmaxfree.layers.padding import extents
from softmaxfree.mixers.mixer import AbstractAttention, require_flag
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import full_precision, widen

_EPS, _STARTS = 1e-6, ("linear", "cos", "exp", "gaussian", "local")


@register
class BlockMixingAttention(AbstractAttention):
    """Linear attention whose weights are `M[block of query, block of key] phi(q) phi(k)^T`, `phi = relu + 1e-6`.

    For a token of block `i`: `phi(q) sum_j M_ij S_j / (phi(q) sum_j M_ij z_j + 1e-6)`, with the sums over the keys of a
    block `S_j = sum phi(k)^T v` and `z_j = sum phi(k)` (arXiv 2601.07832). `M` is learned, one for all heads. Each
    image is cut into the same number of blocks, of `ceil(size / blocks)` tokens along each axis; the last may be
    smaller or empty. So `M` fits any grid, and the cost is linear in the tokens.

    The released code has another denominator, `sum_j M_ij phi(q_jt) z_j + 1e-6`, with the query at the same place `t`
    in each block: its rows do not sum to 1, and what a token gets depends on other queries. It takes square grids only,
    in block order.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        block_grid: blocks along each axis: two numbers for images, one for sequences.
        start: what `M` is at the start, a function of the distance between blocks, see `start_of_mixing`.
        denominator: "formula", or "released" for weights of the released code.
        norm: whether the tokens go through a LayerNorm first, which the released module has in itself.
        qk_norm: whether queries and keys go through an RMSNorm over all channels.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "mhla"
    source = "MHLA, ICLR 2026"
    ndims = (2,)
    prefix = False  # a class token is in no block

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        block_grid: Sequence[int] = (4, 4),
        start: Literal["linear", "cos", "exp", "gaussian", "local"] = "linear",
        denominator: Literal["formula", "released"] = "formula",
        norm: bool = False,
        qk_norm: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, **common)
        axes = len(block_grid) if isinstance(block_grid, Sequence) else 2
        require_whole_numbers("block_grid", block_grid, axes if axes in (1, 2) else 2, 1)
        require(start in _STARTS, "start", start, f"one of {', '.join(_STARTS)}")
        require(denominator in ("formula", "released"), "denominator", denominator, "'formula' or 'released'")
        require_flag("norm", norm)
        require_flag("qk_norm", qk_norm)
        factory: dict[str, Any] = {key: common.get(key) for key in ("device", "dtype")}
        self.block_grid, self.start, self.denominator, self.qk_norm = tuple(block_grid), start, denominator, qk_norm
        self.ndims = (axes,)
        self.norm = nn.LayerNorm(dim, **factory) if norm else None
        self.q_norm = nn.RMSNorm(dim, **factory) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(dim, **factory) if qk_norm else nn.Identity()
        self.mixing = nn.Parameter(start_of_mixing(self.block_grid, start).to(**factory))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to queries, keys and values, `(B, H, N, D)` each."""
        q, k, v = self.qkv(x if self.norm is None else self.norm(x)).chunk(3, -1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (self.q_norm(q), self.k_norm(k), v))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        token, valid, place = self._blocks(grid, mask, q.device)
        with full_precision(v):
            one = F.pad(widen(v), (0, 1), value=1.0)  # the denominator is the sum of the weights
            q, k, one = (_gather(x, token.flatten(1)).unflatten(2, token.shape[1:]) for x in (q, k, one))
            q, k = (((widen(x).relu() + _EPS) * valid[:, None, :, :, None]) for x in (q, k))
            states = k.mT @ one
            mixing = widen(self.mixing)
            mixed = q @ (mixing @ states.flatten(-2)).unflatten(-1, states.shape[-2:])
            total = mixed[..., -1:]
            if self.denominator == "released":
                total = mixing @ (q @ states[..., -1:]).squeeze(-1)
                total = total.unsqueeze(-1)
            out = (mixed[..., :-1] / (total + _EPS)).flatten(2, 3)
        return _gather(out, place).to(v.dtype)

    def _blocks(self, grid: list[int], mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Returns which token is where in which block, `(B, P, T)`, whether one is there, and where each token is."""
        sizes = [torch.full((1,), n, device=device) for n in grid] if mask is None else extents(mask)
        if len(grid) == 1:  # an image of one row
            grid, sizes = [1, *grid], [torch.ones_like(sizes[0]), *sizes]
        blocks = (1, *self.block_grid)[-2:]
        rows, columns = (_Cut(*axis) for axis in zip(grid, blocks, sizes, strict=True))
        token = rows.token[:, :, None, :, None] * grid[1] + columns.token[:, None, :, None]
        valid = rows.valid[:, :, None, :, None] & columns.valid[:, None, :, None]
        block = rows.block[:, :, None] * blocks[1] + columns.block[:, None]
        place = rows.place[:, :, None] * columns.longest + columns.place[:, None]
        place = block * (rows.longest * columns.longest) + place
        token = token.masked_fill(~valid, 0)
        return token.flatten(3).flatten(1, 2), valid.flatten(3).flatten(1, 2), place.flatten(1)


class _Cut:
    """One axis of `n` tokens, of which `size (B,)` are valid, in blocks of `ceil(size / blocks)`.

    Of each place in each block `(B, blocks, longest)`: the `token` there, and whether it is `valid`. Of each token
    `(B, n)`: its `block`, and its `place` in it; any there is in the padding.
    """

    def __init__(self, n: int, blocks: int, size: Tensor) -> None:
        # no quotient of negative numbers, which ONNX rounds towards 0
        self.longest: Any = (n + blocks - 1) // blocks
        if torch.compiler.is_exporting():  # one alone would be taken for an axis to broadcast, at every size
            self.longest = torch.sym_max(self.longest, 2)
        side = ((size + blocks - 1) // blocks).clamp(min=1)[:, None]  # 0 of padding alone
        token, place = (torch.arange(count, device=size.device) for count in (n, self.longest))
        self.block = (token // side).clamp(max=blocks - 1)
        self.place = (token - self.block * side).clamp(max=self.longest - 1)
        first = torch.arange(blocks, device=size.device) * side
        self.token = first[:, :, None] + place
        self.valid = (place < side)[:, None] & (self.token < size[:, None, None])


def start_of_mixing(block_grid: Sequence[int], start: str, sigma: float = 3.0) -> Tensor:
    """Returns the matrix between blocks at the start, `(P, P)` float32.

    Args:
        block_grid: blocks along each axis.
        start: of the distance `t` between two blocks, at most `T`: "linear" `1 - t / T`, "cos" `cos(pi t / (4 T))`,
            "exp" `exp(-t / sigma)`, "local" 1 up to `t = 1.5` and 0 beyond, each over the sum of its column (as the
            released code does it: the rows sum to about 1); "gaussian" `exp(-9 t^2 / (2 T^2))`, as it is.
        sigma: of "exp".

    Returns:
        The matrix.
    """
    centres = torch.tensor(list(itertools.product(*map(range, block_grid))), dtype=torch.float32)
    distance = torch.linalg.vector_norm(centres[:, None] - centres, dim=-1)
    farthest = distance.max().clamp(min=1.0)
    if start == "gaussian":
        return torch.exp(-4.5 * (distance / farthest).square())
    values = {
        "linear": 1 - distance / farthest,
        "cos": torch.cos(math.pi / 4 * distance / farthest),
        "exp": torch.exp(-distance / sigma),
        "local": (distance <= 1.5).float(),
    }[start]
    return values / values.sum(0)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Returns tokens `(B, H, n, D)` of `x (B, H, N, D)` by an index `(B or 1, n)`."""
    index = index[:, None, :, None].expand(x.shape[0], x.shape[1], -1, x.shape[3])
    return x.gather(2, index)
