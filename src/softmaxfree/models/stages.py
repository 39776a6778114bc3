"""The two kinds of stage: softmax-free, and the released last stage with softmax and a class token."""

from typing import Any

import torch
from timm.layers import LayerNorm, trunc_normal_
from timm.models import checkpoint
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.layers import PositionTable, SoftmaxFreeBlock


class SoftmaxFreeStage(nn.Module):
    """Embedding, positions and post-norm softmax-free blocks.

    Args:
        embed: maps the stage's input `(B, C_in, h, w)` to `(B, C, Y, X)`.
        dim: channels `C`.
        grid: size `(Y, X)` of the stored position table.
        num_heads: number of heads.
        ratio: side of the window of tokens that one landmark stands for.
        drop_path: stochastic depth rate of each block; as many as blocks.
        attention: further arguments of `SoftmaxFreeAttention`.
        device: of the weights.
        dtype: of the weights.
    """

    def __init__(
        self,
        embed: nn.Module,
        dim: int,
        grid: tuple[int, int],
        num_heads: int,
        ratio: int,
        drop_path: list[float],
        attention: dict,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.embed = embed
        self.pos_embed = PositionTable(dim, grid, **factory)
        self.blocks = nn.ModuleList(
            SoftmaxFreeBlock(dim, num_heads, ratio, drop_path=rate, attention=attention, **factory)
            for rate in drop_path
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, C_in, h, w)` to `(B, C, Y, X)`."""
        x = self.embed(x.contiguous(memory_format=torch.channels_last))  # so that a token is a row of memory
        grid = [x.shape[-2], x.shape[-1]]
        tokens = x.flatten(2).transpose(1, 2) + self.pos_embed(grid[0], grid[1])
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                tokens = checkpoint(block, tokens, grid)
            else:
                tokens = block(tokens, grid)
        return tokens.transpose(1, 2).unflatten(2, grid)


class ClassTokenStage(nn.Module):
    """The released last stage: pre-norm blocks with softmax attention over the tokens and a class token.

    The classifier reads the class token. So that the map this stage returns needs no companion, `center` shifts the map
    so that its spatial mean is the class token: the head is then global average pooling, as every tool around timm
    expects, and the logits are the released ones.

    Args:
        embed: maps the stage's input `(B, C_in, h, w)` to `(B, C, Y, X)`.
        dim: channels `C`.
        grid: size `(Y, X)` of the stored position table.
        num_heads: number of heads.
        drop_path: stochastic depth rate of each block; as many as blocks.
        device: of the weights.
        dtype: of the weights.
    """

    def __init__(
        self,
        embed: nn.Module,
        dim: int,
        grid: tuple[int, int],
        num_heads: int,
        drop_path: list[float],
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.center = True
        self.embed = embed
        self.pos_embed = PositionTable(dim, grid, **factory)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **factory))
        self.cls_pos = nn.Parameter(torch.empty(1, 1, dim, **factory))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, qkv_bias=True, norm_layer=LayerNorm, drop_path=rate, **factory) for rate in drop_path
        )
        self.norm = LayerNorm(dim, **factory)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.cls_pos, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, C_in, h, w)` to `(B, C, Y, X)`, normalised; centred on the class token if `center`."""
        x = self.embed(x.contiguous(memory_format=torch.channels_last))  # so that a token is a row of memory
        grid = [x.shape[-2], x.shape[-1]]
        tokens = x.flatten(2).transpose(1, 2) + self.pos_embed(grid[0], grid[1])
        cls = (self.cls_token + self.cls_pos).expand(x.shape[0], -1, -1)
        tokens = torch.cat((cls, tokens), 1)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                tokens = checkpoint(block, tokens)
            else:
                tokens = block(tokens)
        tokens = self.norm(tokens)
        patches = tokens[:, 1:]
        if self.center:
            patches = patches - patches.mean(1, keepdim=True) + tokens[:, :1]
        return patches.transpose(1, 2).unflatten(2, grid)
