"""cosFormer: ReLU linear attention whose weights fall with the distance of tokens as a cosine (Qin et al., 2022)."""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.types import Device

from softmaxfree.arguments import require
from softmaxfree.layers.padding import extents
from softmaxfree.mixers.features import linear_attention
from softmaxfree.mixers.mixer import AbstractAttention, valid_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.ops.precision import compute_dtype, widen

Positions = Literal["raster", "grid"]


@register
class CosformerAttention(AbstractAttention):
    """Weights `relu(q_i) . relu(k_j) cos(pi/2 (p_i - p_j))`, divided by their sum, or by 1e-6 if that is more.

    By `cos(a - b) = cos a cos b + sin a sin b` it is linear, with `2 D` features. In an image beside padding, positions
    are those in the image alone. Nothing is scaled by `D^(-1/2)`, as released. A query without a positive channel gets
    0.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        positions: `"raster"`: `p_i = i / N` in row-major order, as released; `"grid"`: a cosine for each axis, of
            `y / Y` and of `x / X`, with `4 D` features, which is our extension to images and takes no prefix tokens.
        device: of the weights.
        dtype: of the weights.
        **common: see `AbstractAttention`.

    Raises:
        InputError: for an argument out of range.
    """

    name = "cosformer"
    source = "cosFormer, ICLR 2022"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        positions: Positions = "raster",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **common: Any,
    ) -> None:
        super().__init__(dim, num_heads, device=device, dtype=dtype, **common)
        allowed = get_args(Positions)
        require(positions in allowed, "positions", positions, f"one of {', '.join(allowed)}")
        self.positions: str = positions
        if positions == "grid":
            self.prefix = False  # type: ignore[misc]  a class token is nowhere on it

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`."""
        places = _raster(q, mask) if self.positions == "raster" else _axes(q, grid, mask)
        q, k = F.relu(widen(q)), F.relu(widen(k))
        for place in places:
            angle = (math.pi / 2 * place)[:, None, :, None]
            cos, sin = angle.cos(), angle.sin()
            q, k = torch.cat((q * cos, q * sin), -1), torch.cat((k * cos, k * sin), -1)
        return linear_attention(q, k, v, mask, least=1e-6)


def _raster(q: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Returns the place of each token in its image's sequence, from 0 to 1, `(B or 1, N)`."""
    tokens = q.shape[2]
    if mask is None:
        return [torch.arange(tokens, device=q.device, dtype=compute_dtype(q.dtype)).unsqueeze(0) / tokens]
    # a valid token's number in the image alone is how many come before it
    number = valid_tokens(mask, tokens).cumsum(1).to(compute_dtype(q.dtype))
    return [(number - 1) / number[:, -1:].clamp(min=1)]


def _axes(q: Tensor, grid: list[int], mask: Tensor | None) -> list[Tensor]:
    """Returns the place of each token along each axis of its image, from 0 to 1, `(B or 1, N)` each."""
    places = []
    for axis, size in enumerate(grid):
        own = torch.full((1,), size, device=q.device) if mask is None else extents(mask)[axis].clamp(min=1)
        place = torch.arange(size, device=q.device, dtype=compute_dtype(q.dtype)) / own.unsqueeze(1)
        if len(grid) == 2:
            place = place.unsqueeze(2 - axis).expand(-1, *grid).flatten(1)
        places.append(place)
    return places
