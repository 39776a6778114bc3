"""The two kinds of stage: around any mixer, and the released last stage with softmax and a class token."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, trunc_normal_
from timm.models import checkpoint
from timm.models.vision_transformer import Block as PreNormBlock
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.types import Device

from softmaxfree.layers import Block, ConvEmbedding, PositionTable, block_arguments
from softmaxfree.layers.embed import feature_map
from softmaxfree.layers.inference import narrowed
from softmaxfree.layers.linear import exchange_linear
from softmaxfree.layers.padding import at_stride, valid_mean, zero_padding
from softmaxfree.mixers import AbstractMixer
from softmaxfree.ops import transforms


class Stage(nn.Module):
    """Embedding, positions and post-norm blocks around one kind of mixer.

    Args:
        embed: maps the stage's input `(B, C_in, h, w)` to `(B, C, Y, X)`.
        dim: channels `C`.
        grid: size `(Y, X)` of the stored position table.
        make_mixer: makes the mixer of a block.
        drop_path: stochastic depth rate of each block; as many as blocks.
        block_args: of the feed-forward part, see `Block`; None for the defaults.
        device: of the weights.
        dtype: of the weights.
    """

    def __init__(
        self,
        embed: ConvEmbedding,
        dim: int,
        grid: tuple[int, int],
        make_mixer: Callable[[], AbstractMixer],
        drop_path: list[float],
        block_args: Mapping[str, Any] | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.embed = embed
        self.pos_embed = PositionTable(dim, grid, **factory)
        block: dict[str, Any] = {**block_arguments(block_args), **factory}
        self.blocks = nn.ModuleList(Block(make_mixer(), drop_path=rate, **block) for rate in drop_path)

    @property
    def mixers(self) -> list[AbstractMixer]:
        """The mixer of each block."""
        return [block.attn for block in self.blocks]  # type: ignore[misc]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps `(B, C_in, h, w)` to `(B, C, Y, X)`; both are zero in the padding, where `mask (B, h, w)` is False."""
        x = _channels_last(x)
        x, mask = self.embed(x, mask), at_stride(mask, self.embed.stride)
        grid = [x.shape[-2], x.shape[-1]]
        tokens = x.flatten(2).transpose(1, 2) + narrowed(self.pos_embed(grid[0], grid[1], mask))
        for block in self.blocks:
            tokens = checkpoint(block, tokens, grid, mask) if self.grad_checkpointing else block(tokens, grid, mask)
        x = feature_map(tokens, grid)
        return x if mask is None else zero_padding(x, mask)


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
        embed: ConvEmbedding,
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
            exchange_linear(
                PreNormBlock(dim, num_heads, qkv_bias=True, norm_layer=LayerNorm, drop_path=rate, **factory)
            )
            for rate in drop_path
        )
        self.norm = LayerNorm(dim, **factory)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.cls_pos, std=0.02)

    @property
    def mixers(self) -> list[AbstractMixer]:
        """None of the registry."""
        return []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps `(B, C_in, h, w)` to `(B, C, Y, X)`, normalised; centred on the class token if `center`.

        Both are zero in the padding, where `mask (B, h, w)` is False.
        """
        x, cls = self.features(x, mask)
        return self.centred(x, cls, at_stride(mask, self.embed.stride)) if self.center else x

    def features(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the map `(B, C, Y, X)`, as it is, and the class token `(B, C)`, for the input of `forward`."""
        x = _channels_last(x)
        x, mask = self.embed(x, mask), at_stride(mask, self.embed.stride)
        grid = [x.shape[-2], x.shape[-1]]
        tokens = x.flatten(2).transpose(1, 2) + self.pos_embed(grid[0], grid[1], mask)
        cls = (self.cls_token + self.cls_pos).expand(x.shape[0], -1, -1)
        tokens = torch.cat((cls, tokens), 1)
        keys: Tensor | None = None
        if mask is not None:  # every token attends the class token and the valid ones
            keys = F.pad(mask.flatten(1), (1, 0), value=1.0)[:, None, None]
        for block in self.blocks:
            tokens = self._run(block, tokens, keys)
        tokens = self.norm(tokens)
        x = feature_map(tokens[:, 1:], grid)
        return x if mask is None else zero_padding(x, mask), tokens[:, 0]

    def centred(self, x: Tensor, cls: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the map `(B, C, Y, X)`, shifted so that the mean of its valid cells is `cls (B, C)`."""
        mean = x.mean((-2, -1)) if mask is None else valid_mean(x, mask)
        x = x + (cls - mean)[:, :, None, None]
        return x if mask is None else zero_padding(x, mask)

    def _run(self, block: nn.Module, tokens: Tensor, keys: Tensor | None) -> Tensor:
        if transforms.at_work():
            with sdpa_kernel(SDPBackend.MATH):  # the others have no forward-mode derivative
                return block(tokens, keys)
        if self.grad_checkpointing:
            return checkpoint(block, tokens, keys)
        return block(tokens, keys)


def _channels_last(x: Tensor) -> Tensor:
    """Returns `x` with a token as a row of memory."""
    if transforms.at_work():
        return x  # vmap knows no memory formats
    return x.contiguous(memory_format=torch.channels_last)
