"""The post-norm block of SOFT: attention and feed-forward, each followed by LayerNorm after the residual sum."""

from typing import Any

import torch
from timm.layers import DropPath, GELUTanh, Mlp
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.layers.attention import SoftmaxFreeAttention


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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attn = SoftmaxFreeAttention(dim, num_heads, ratio, **(attention or {}), **factory)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELUTanh, **factory)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **factory)

    def forward(self, x: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Maps tokens `(B, N, C)` on a grid of `N` cells, valid where `mask (B, *grid)` is True, to `(B, N, C)`."""
        x = self.norm1(x + self.drop_path1(self.attn(x, grid, mask)))
        return self.norm2(x + self.drop_path2(self.mlp(x)))
