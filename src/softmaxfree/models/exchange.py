"""Trained softmax transformers of timm whose attention is exchanged for a mixer; all other weights stay as they are.

Attention and network become subclasses of their own classes in place, so that weights keep their names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.layers.attention import Attention, AttentionRope
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.pvt_v2 import Attention as ReducingAttention
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from softmaxfree.errors import InputError
from softmaxfree.mixers import AbstractAttention, AbstractMixer, create_mixer, mixer_class

__all__ = ["Arguments", "ExchangedAttention", "attention_blocks", "check_blocks", "exchange", "exchanged"]

_Inputs = tuple[Tensor, Tensor, Tensor, list[int]]


class ExchangedAttention:
    """What timm's attention becomes: its own projections around the `mix` of a mixer."""

    mixer: AbstractMixer

    def inputs(self, *args: Any, **kwargs: Any) -> _Inputs:
        """Returns queries, keys, values and the grid of the keys, of what `forward` is given."""
        raise NotImplementedError

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Maps tokens `(B, N, C)` to tokens; takes what the attention took, with the grid in place of its mask."""
        q, k, v, grid = self.inputs(x, *args, **kwargs)
        out = self.mixer.mix(q, k, v, grid).transpose(1, 2).flatten(2)
        if (norm := getattr(self, "norm", None)) is not None and not isinstance(self, ReducingAttention):
            out = norm(out)
        if getattr(self, "gate", None) is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class _Plain(ExchangedAttention, Attention):
    def inputs(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> _Inputs:
        q, k, v = _split(self.qkv(x), self.num_heads)
        return self.q_norm(q), self.k_norm(k), v, attn_mask


class _Rotary(ExchangedAttention, AttentionRope):
    def inputs(self, x: Tensor, rope: Tensor | None = None, attn_mask: Any = None, is_causal: bool = False) -> _Inputs:
        if self.qkv is not None:
            q, k, v = _split(self.qkv(x), self.num_heads)
        else:
            q, k, v = _heads(self.q_proj(x), self.num_heads), *_keys(self, x, self.num_kv_heads)
        q, k = _rotated(self, self.q_norm(q), rope), _rotated(self, self.k_norm(k), rope)
        if self.num_kv_groups > 1:
            k, v = (each.repeat_interleave(self.num_kv_groups, 1) for each in (k, v))
        return q, k, v, attn_mask


class _OfEva(ExchangedAttention, EvaAttention):
    def inputs(self, x: Tensor, rope: Tensor | None = None, attn_mask: Any = None, is_causal: bool = False) -> _Inputs:
        if self.qkv is not None:
            q, k, v = _split(self.qkv(x), self.num_heads)
            if self.q_bias is not None:  # none of the keys: it would cancel
                q, v = (
                    each + bias.unflatten(0, (self.num_heads, 1, -1))
                    for each, bias in ((q, self.q_bias), (v, self.v_bias))
                )
        else:
            q, k, v = _heads(self.q_proj(x), self.num_heads), *_keys(self, x, self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        return _rotated(self, q, rope), _rotated(self, k, rope), v, attn_mask


class _Reducing(ExchangedAttention, ReducingAttention):
    def inputs(self, x: Tensor, feat_size: Sequence[int]) -> _Inputs:
        q, grid = _heads(self.q(x), self.num_heads), list(feat_size)
        if self.sr is not None:
            image = x.transpose(1, 2).unflatten(2, grid)
            image = self.sr(image if self.pool is None else self.pool(image))
            grid = [image.shape[2], image.shape[3]]
            x = self.norm(image.flatten(2).transpose(1, 2))
            x = x if self.act is None else self.act(x)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v, grid


class _TellsGrid:
    """A network whose attention gets the grid of the patches on the way of the mask."""

    def grid_of(self: Any, size: Sequence[int]) -> list[int]:
        """Returns rows and columns of the patches of an image of this height and width."""
        return list(self.patch_embed.dynamic_feat_size(tuple(size)))

    def forward_features(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        _no_mask(attn_mask, is_causal)
        return super().forward_features(x, attn_mask=self.grid_of(x.shape[-2:]))  # type: ignore[misc]

    def forward_intermediates(
        self: Any, x: Tensor, *args: Any, attn_mask: Tensor | None = None, is_causal: bool = False, **kwargs: Any
    ) -> Any:
        _no_mask(attn_mask, is_causal)
        return super().forward_intermediates(x, *args, attn_mask=self.grid_of(x.shape[-2:]), **kwargs)  # type: ignore[misc]


class _ViT(_TellsGrid, VisionTransformer):
    pass


class _Distilled(_TellsGrid, VisionTransformerDistilled):
    pass


class _EvaNet(_TellsGrid, Eva):
    pass


_ATTENTION: dict[type, type] = {
    Attention: _Plain, AttentionRope: _Rotary, EvaAttention: _OfEva, ReducingAttention: _Reducing
}  # fmt: skip
_NETWORKS: dict[type, type] = {
    VisionTransformer: _ViT, VisionTransformerDistilled: _Distilled, Eva: _EvaNet,
    PyramidVisionTransformerV2: PyramidVisionTransformerV2,  # its attention gets the grid
}  # fmt: skip


Arguments = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
"""Of a mixer: for all blocks, or for each block."""


def exchange(model: Any, mixer: str, mixer_args: Arguments = None, blocks: Sequence[int] | None = None) -> Any:
    """Exchanges the attention of a network of timm, in place; nothing is trained.

    Args:
        model: a `vit_*`, `deit_*`, `*_dinov2`, `*_dinov3`, `eva02_*` or `pvt_v2_*`.
        mixer: name of one that mixes queries, keys and values of the usual projections, such as "softn".
        mixer_args: its arguments, or those of each block that is exchanged.
        blocks: numbers of the blocks, in order; None takes all. The others keep softmax.

    Returns:
        The model. Its blocks' `attn.mixer` are what they mix by.

    Raises:
        InputError: its class or that of its attention is not understood, or there is no such mixer, argument or block.
    """
    if type(model) not in _NETWORKS:
        raise InputError(f"model: {_of(model)} is not understood; {_allowed(_NETWORKS)} are")
    own = attention_blocks(model)
    chosen = check_blocks(blocks, len(own))
    kind = mixer_class(mixer)
    if not issubclass(kind, AbstractAttention) or kind.project is not AbstractAttention.project:
        raise InputError(f"mixer: {mixer} has projections of its own, which a trained attention does not; try softn")
    given = [mixer_args or {}] * len(chosen) if mixer_args is None or isinstance(mixer_args, Mapping) else mixer_args
    if len(given) != len(chosen):
        raise InputError(f"mixer_args must be a dict, or one for each of {len(chosen)} blocks, got {len(given)}")
    by_block = dict(zip(chosen, given, strict=True))
    made = [
        _mixing(each, mixer, by_block[i]) if i in by_block else _mixing(each, "softmax") for i, each in enumerate(own)
    ]
    if getattr(model, "num_prefix_tokens", False) and not all(mixing.prefix for mixing in made):  # by its arguments
        raise InputError(f"mixer: {mixer}, as given, takes no class token, which {_of(model)} has")
    for attention, mixing in zip(own, made, strict=True):
        attention.__class__ = _ATTENTION[type(attention)]
        attention.mixer = mixing.to(attention.proj.weight.device, attention.proj.weight.dtype)
    model.__class__ = _NETWORKS[type(model)]
    return model


def attention_blocks(model: nn.Module) -> list[Any]:
    """Returns the attention of all blocks of a network that can be exchanged.

    Args:
        model: of timm.

    Returns:
        The modules, in order.

    Raises:
        InputError: it has none, or one is not understood.
    """
    found = [
        getattr(block, "attn", block)
        for name, block in model.named_modules()
        if name.rpartition(".")[0].endswith("blocks")
    ]
    for each in found:
        if isinstance(each, ExchangedAttention):
            raise InputError(f"model: the attention of {_of(model)} is exchanged already: give its teacher")
        if type(each) not in _ATTENTION:
            raise InputError(f"model: the attention {_of(each)} is not understood; {_allowed(_ATTENTION)} are")
    if not found:
        raise InputError(f"model: {_of(model)} has no blocks with attention")
    return found


def exchanged(model: nn.Module) -> list[Any]:
    """Returns the exchanged attention of a network, in order; of any other network none."""
    return [module for module in model.modules() if isinstance(module, ExchangedAttention)]


def check_blocks(blocks: Sequence[int] | None, count: int) -> list[int]:
    """Returns the numbers of blocks, all for None; raises InputError unless a network of `count` has them."""
    chosen = list(range(count)) if blocks is None else list(blocks)
    wrong = [i for i in chosen if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < count]
    if wrong or not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"blocks must be different numbers from 0 to {count - 1}, got {blocks!r}")
    return chosen


def _mixing(attention: Any, name: str, own: Mapping[str, Any] | None = None) -> AbstractMixer:
    """A mixer without projections of its own."""
    width = attention.num_heads * attention.head_dim
    mixer: Any = create_mixer(name, dim=width, num_heads=attention.num_heads, **dict(own or {}))
    if mixer.value_conv is not None or mixer.gate is not None or 2 not in mixer.ndims:
        raise InputError("mixer_args: a trained attention is exchanged without gate and value_kernel, on images")
    mixer.qkv = mixer.proj = nn.Identity()
    return mixer


def _no_mask(mask: Any, is_causal: bool) -> None:
    if mask is not None or is_causal:
        raise InputError("attn_mask and is_causal must not be given: the exchanged attention takes no mask")


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _split(qkv: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unflatten(-1, (3, count, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _keys(attention: Any, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return _heads(attention.k_proj(x), count), _heads(attention.v_proj(x), count)


def _rotated(attention: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    if rope is None:
        return x
    first, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)
    turned = apply_rot_embed_cat(x[:, :, first:], rope, half=half)
    return torch.cat([x[:, :, :first], turned.type_as(x)], 2)


def _of(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _allowed(classes: Mapping[type, type]) -> str:
    return ", ".join(f"{own.__module__}.{own.__qualname__}" for own in classes)
