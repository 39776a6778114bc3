"""`linearized`: a transformer of timm whose attention is exchanged, under a name of its own, so that timm loads it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.mixers.mixer import plain
from softmaxfree.models.creation import create_model
from softmaxfree.models.exchange import Arguments, exchange, exchanged
from softmaxfree.models.record import NAME, decode, encode

__all__ = ["linearized_of", "resample_positions"]

_ENTRY = "linearized"


_CFG: dict[str, Any] = {
    "num_classes": 0, "input_size": (3, 224, 224), "pool_size": None, "fixed_input_size": True, "crop_pct": 1.0,
    "interpolation": "bicubic", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj", "classifier": "head",
}  # fmt: skip
default_cfgs = generate_default_cfgs({_ENTRY: dict(_CFG)})


@register_model
def linearized(pretrained: bool = False, **kwargs) -> Any:
    """A softmax ViT of timm, `teacher`, whose attention is exchanged for `mixer` in `blocks`; weights by linearize."""
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        _build,
        _ENTRY,
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        pretrained_filter_fn=_fitting,
        **kwargs,
    )


def linearized_of(
    model: Any, mixer: str = "softn", mixer_args: Arguments = None, blocks: Sequence[int] | None = None
) -> Any:
    """Exchanges the attention of a model of timm in place, and lets its weights carry what they are tied to.

    Args:
        model: made by `timm.create_model`.
        mixer: see `exchange`.
        mixer_args: see `exchange`.
        blocks: see `exchange`.

    Returns:
        The model, which timm saves and loads as `linearized`.

    Raises:
        InputError: as `exchange`.
    """
    teacher = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not teacher:
        raise InputError(f"model must be made by timm.create_model, whose name it keeps; got {type(model).__name__}")
    exchange(model, mixer, mixer_args, blocks)
    own = {"teacher": teacher, "mixer": mixer, "mixer_args": plain(mixer_args or {})}
    model._model_args = {**getattr(model, "_model_args", {}), **own, "blocks": None if blocks is None else [*blocks]}
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": _ENTRY}
    model.register_buffer(NAME, encode(_record(model)).to(next(model.parameters()).device))
    model.register_state_dict_post_hook(_write)
    model.register_load_state_dict_pre_hook(_read)
    return model


def resample_positions(table: Tensor, prefix: int, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Resamples a position table, bicubic without antialiasing, as DINOv2 does; timm's own way gives other tokens.

    Args:
        table: `(1, P + Y X, C)`.
        prefix: `P`, tokens before those of the grid.
        before: `(Y, X)`.
        after: rows and columns wanted.

    Returns:
        `(1, P + rows columns, C)`.
    """
    if tuple(before) == tuple(after):
        return table
    cells = table[:, prefix:].unflatten(1, tuple(before)).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=tuple(after), mode="bicubic", antialias=False)
    return torch.cat([table[:, :prefix], cells.flatten(2).transpose(1, 2)], 1)


def _build(
    teacher: str = "vit_small_patch14_dinov2",
    mixer: str = "softn",
    mixer_args: Arguments = None,
    blocks: Sequence[int] | None = None,
    **kwargs: Any,
) -> Any:
    return linearized_of(create_model(teacher, **kwargs), mixer, mixer_args, blocks)


def _record(model: Any) -> dict[str, Any]:
    return {"mixers": [each.mixer.config() for each in exchanged(model)]}


def _write(model: Any, state_dict: Any, prefix: str, *_: Any) -> None:
    if (name := prefix + NAME) in state_dict:
        state_dict[name] = encode(_record(model)).to(state_dict[name].device)


def _read(model: Any, state_dict: Any, prefix: str, *rest: Any) -> None:
    """Refuses weights of other mixers, and sets what can be changed later to theirs."""
    if (name := prefix + NAME) not in state_dict:
        return
    theirs, own = decode(state_dict[name])["mixers"], exchanged(model)
    for i, (config, each) in enumerate(zip(theirs, own, strict=False)):
        ours, able = each.mixer.config(), each.mixer.adjustable
        wrong = [key for key in sorted(config, key="name".__ne__) if key not in able and config[key] != ours.get(key)]
        if wrong:
            key = "mixer" if wrong[0] == "name" else wrong[0]
            told = f"with {key}={config[wrong[0]]!r}, this model has {ours.get(wrong[0])!r}"
            rest[-1].append(f"the weights of block {i} were trained {told}: make it with theirs")
            return
        each.mixer.adjust(**{key: config[key] for key in able if key in config})
    state_dict[name] = encode(_record(model))


def _fitting(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Weights with the position table of the model's size."""
    table = state_dict.get("pos_embed")
    if table is None or table.shape == model.pos_embed.shape:
        return state_dict
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    side, after = math.isqrt(table.shape[1] - prefix), model.patch_embed.grid_size
    if side**2 != table.shape[1] - prefix:
        raise InputError(
            f"img_size must be that of the weights, whose {table.shape[1] - prefix} positions are of no square"
        )
    return {**state_dict, "pos_embed": resample_positions(table, prefix, (side, side), after)}
