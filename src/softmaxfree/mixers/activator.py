"""A gated linear unit in the place of attention, which mixes no tokens: a control (Activator, arXiv 2405.15953)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.types import Device

from softmaxfree.arguments import require, require_number
from softmaxfree.layers.linear import Linear
from softmaxfree.mixers.mixer import AbstractMixer
from softmaxfree.mixers.registry import register

_ACTS: dict[str, Any] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}


@register
class GatedLinearUnit(AbstractMixer):
    """`W_o (act(W_1 x) * (W_2 x))` of each token alone: GEGLU, SwiGLU or ReGLU.

    Tokens see each other nowhere in such a block; in a pyramid only the embeddings between the stages mix. So its
    results say what a network reaches without a mixer. `act(W_1 x)` takes the place of queries, and there are no keys.
    The paper gives no widths.

    Args:
        dim: channels `C`.
        num_heads: divides `dim`; without effect but on rounding of the hidden width.
        hidden_ratio: hidden width over `dim`.
        act: "gelu", "silu" or "relu".
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    name = "activator"
    source = "Activator, 2024: mixes nothing"
    mixes = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        hidden_ratio: float = 1.0,
        act: Literal["gelu", "silu", "relu"] = "gelu",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads)
        require_number("hidden_ratio", hidden_ratio, 0)
        require(act in _ACTS, "act", act, f"one of {', '.join(_ACTS)}")
        width = round(self.head_dim * hidden_ratio)
        require(width >= 1, "hidden_ratio", hidden_ratio, f"enough for one hidden feature of {self.head_dim}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden_ratio, self.act = hidden_ratio, act
        self.glu = Linear(dim, 2 * num_heads * width, **factory)
        self.proj = Linear(num_heads * width, dim, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to gates, the same in place of keys, and values, `(B, H, N, E)` each."""
        gate, v = self.glu(x).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        gate = gate.transpose(1, 2)
        return gate, gate, v.transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Multiplies; mixes nothing, whatever the grid and the mask."""
        return _ACTS[self.act](q) * v
