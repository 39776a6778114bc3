"""The post-norm block of SOFT: attention and feed-forward, each followed by LayerNorm after the residual sum."""

from typing import Any

import torch
from timm.layers import DropPath, GELUTanh, Mlp
from torch import Tensor, nn
from torch.fx import Proxy
from torch.types import Device

from softmaxfree.arguments import require, require_number
from softmaxfree.layers.attention import SoftmaxFreeAttention

# of the hidden features that inference holds at once: what caches hold, and what keeps a GPU busy
_CPU_HIDDEN_BYTES, _HIDDEN_BYTES = 1 << 22, 1 << 26


class SoftmaxFreeBlock(nn.Module):
    """Post-norm transformer block (SOFT, section 3.3).

    Args:
        dim: channels `C`.
        num_heads: number of heads.
        ratio: side of the window of tokens that one landmark stands for.
        mlp_ratio: hidden width of the feed-forward part over `dim`.
        drop_path: probability that an image skips a branch in training (stochastic depth; the released code drops
            single elements under this name).
        attention: further arguments of `SoftmaxFreeAttention`.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratio: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        attention: dict | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_number("mlp_ratio", mlp_ratio, 0)
        require_number("drop_path", drop_path, 0, below=1)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attn = SoftmaxFreeAttention(dim, num_heads, ratio, **(attention or {}), **factory)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        hidden = int(dim * mlp_ratio)
        require(hidden >= 1, "mlp_ratio", mlp_ratio, f"enough for one hidden feature of {dim}")
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.mlp = Mlp(dim, hidden, act_layer=GELUTanh, **factory)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **factory)
        self._hidden_width = hidden

    def forward(self, x: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Maps tokens `(B, N, C)` on a grid of `N` cells, valid where `mask (B, *grid)` is True, to `(B, N, C)`."""
        x = self.norm1(x + self.drop_path1(self.attn(x, grid, mask)))
        if torch.jit.is_scripting():
            return self._feed_forward(x)
        else:
            whole = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
            return self._feed_forward(x) if whole or isinstance(x, Proxy) else self._in_chunks(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.norm2(x + self.drop_path2(self.mlp(x)))

    @torch.jit.unused
    def _in_chunks(self, x: Tensor) -> Tensor:
        """Returns `_feed_forward`, in which tokens do not see each other, without all hidden features at once."""
        hidden_bytes = _CPU_HIDDEN_BYTES if x.device.type == "cpu" else _HIDDEN_BYTES
        tokens = x.flatten(0, 1).split(max(1, hidden_bytes // (self._hidden_width * x.element_size())))
        return torch.cat([self._feed_forward(chunk) for chunk in tokens]).view_as(x)
