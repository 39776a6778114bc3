"""SOFT and SOFT++ (`soft_norm_*`): pyramids of softmax-free attention.

Papers:
* `SOFT: Softmax-free Transformer with Linear Complexity` (NeurIPS 2021) - https://arxiv.org/abs/2110.11945
* `Softmax-free Linear Transformers` (IJCV 2024) - https://arxiv.org/abs/2207.03341

The released code (https://github.com/fudan-zvg/SOFT) gives the weights' shapes; nothing of it is used here.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from softmaxfree.errors import InputError
from softmaxfree.models.features import SoftmaxFreeFeatures
from softmaxfree.models.pyramid import SoftmaxFreeTransformer
from softmaxfree.models.released import checkpoint_filter_fn

__all__ = ["SoftmaxFreeTransformer", "checkpoint_filter_fn"]

_WEIGHTS_PAGE = "https://github.com/fudan-zvg/SOFT"


def _create(variant: str, pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    if pretrained:
        sources = {key: kwargs.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay")}
        if not resolve_pretrained_cfg(variant, **sources).has_weights:
            raise InputError(
                f"pretrained=True: no weights of {variant} can be downloaded. Get the authors' file by hand from the "
                f"links at {_WEIGHTS_PAGE} and pass checkpoint_path='FILE.pth', or run `softmaxfree convert FILE.pth`."
            )
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        SoftmaxFreeTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={
            "out_indices": out_indices,
            "feature_cls": SoftmaxFreeFeatures,
            "flatten_sequential": True,
        },
        **kwargs,
    )


def _cfg(**kwargs) -> dict[str, Any]:
    return {
        "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "fixed_input_size": False,
        "crop_pct": 0.875, "interpolation": "bicubic", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.embed.0.conv", "classifier": "head", "license": "mit",
        "origin_url": _WEIGHTS_PAGE, "paper_ids": "arXiv:2110.11945", **kwargs,
    }  # fmt: skip


_SIZES = ("tiny", "small", "medium", "large", "huge")
_CFGS: dict[str, Any] = (
    {"soft_nano.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2))}
    | {f"soft_{size}.fudan_in1k": _cfg() for size in _SIZES}
    | {f"soft_norm_{size}.fudan_in1k": _cfg(paper_ids="arXiv:2207.03341") for size in _SIZES}
)
default_cfgs = generate_default_cfgs(_CFGS)

_TINY = dict(embed_dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16), depths=(1, 2, 3, 2))
# depths of the paper; the released code builds (1, 3, 20, 4), which loads with depths=
_SMALL = dict(_TINY, depths=(1, 3, 7, 4))
_MEDIUM = dict(embed_dims=(64, 128, 288, 512), num_heads=(2, 4, 9, 16), depths=(1, 3, 29, 5))
_LARGE = dict(_TINY, depths=(1, 3, 40, 5))
_HUGE = dict(embed_dims=(64, 128, 352, 512), num_heads=(2, 4, 11, 16), depths=(1, 5, 49, 5))


@register_model
def soft_nano(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """1.5M parameters, for CPUs and images from 13 pixels: landmarks at half the stride."""
    args = dict(
        img_size=64,
        embed_dims=(32, 64, 128, 192),
        num_heads=(1, 2, 4, 6),
        depths=(1, 1, 2, 1),
        sr_ratios=(4, 2, 1, 1),
    )
    return _create("soft_nano", pretrained, **(args | kwargs))


@register_model
def soft_tiny(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Tiny, 13M parameters."""
    return _create("soft_tiny", pretrained, **(_TINY | kwargs))


@register_model
def soft_small(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Small, 24M parameters: the paper's depths."""
    return _create("soft_small", pretrained, **(_SMALL | kwargs))


@register_model
def soft_medium(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Medium, 46M parameters."""
    return _create("soft_medium", pretrained, **(_MEDIUM | kwargs))


@register_model
def soft_large(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Large, 65M parameters."""
    return _create("soft_large", pretrained, **(_LARGE | kwargs))


@register_model
def soft_huge(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Huge, 87M parameters."""
    return _create("soft_huge", pretrained, **(_HUGE | kwargs))


@register_model
def soft_norm_tiny(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Tiny: SOFT-Tiny with symmetric normalisation."""
    return _create("soft_norm_tiny", pretrained, **(_TINY | {"normalize": True} | kwargs))


@register_model
def soft_norm_small(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Small: SOFT-Small with symmetric normalisation."""
    return _create("soft_norm_small", pretrained, **(_SMALL | {"normalize": True} | kwargs))


@register_model
def soft_norm_medium(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Medium: SOFT-Medium with symmetric normalisation."""
    return _create("soft_norm_medium", pretrained, **(_MEDIUM | {"normalize": True} | kwargs))


@register_model
def soft_norm_large(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Large: SOFT-Large with symmetric normalisation."""
    return _create("soft_norm_large", pretrained, **(_LARGE | {"normalize": True} | kwargs))


@register_model
def soft_norm_huge(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Huge: SOFT-Huge with symmetric normalisation."""
    return _create("soft_norm_huge", pretrained, **(_HUGE | {"normalize": True} | kwargs))
