"""SOFT and SOFT++ (`soft_norm_*`): pyramids of softmax-free attention.

Papers:
* `SOFT: Softmax-free Transformer with Linear Complexity` (NeurIPS 2021) - https://arxiv.org/abs/2110.11945
* `Softmax-free Linear Transformers` (IJCV 2024) - https://arxiv.org/abs/2207.03341

The released code (https://github.com/fudan-zvg/SOFT) gives the weights' shapes; nothing of it is used here.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from softmaxfree.errors import InputError, NoWeightsError
from softmaxfree.models.downloads import fetch
from softmaxfree.models.features import SoftmaxFreeFeatures
from softmaxfree.models.mixing import spelled_out
from softmaxfree.models.pyramid import SoftmaxFreeTransformer
from softmaxfree.models.released import checkpoint_filter_fn, depths_of
from softmaxfree.tensors import read_names

__all__ = ["SoftmaxFreeTransformer", "checkpoint_filter_fn"]

_WEIGHTS_PAGE = "https://github.com/fudan-zvg/SOFT"
_RELEASED = {  # the ImageNet weights that its table links to
    "soft_tiny": "https://drive.google.com/uc?id=1S04DCotIOkP0DaBb8WStQ513z82qT9de",
    "soft_norm_tiny": "https://drive.google.com/uc?id=1Isy5b9v_4pyIXDqhKPNRq3WKH0etDlfl",
    "soft_norm_small": "https://drive.google.com/uc?id=1OBjn7FzVdNP1Urqxq7X0yDykyPhxAAW1",
    "soft_norm_medium": "https://drive.google.com/uc?id=1K2C6daaJn3jwurWh38uvV7rexirWjuzh",
    "soft_norm_large": "https://drive.google.com/uc?id=1aRYuF_gbBGyiXUDKEcpHJmM04SdvTUdP",
}


def _create(variant: str, pretrained: bool, args: dict[str, Any], given: dict[str, Any]) -> SoftmaxFreeTransformer:
    fetched, names = _weights(variant, given) if pretrained else (None, [])
    if len(depths := depths_of(names)) == len(args["depths"]):
        args = {**args, "depths": _agreed(depths, variant, given)}
    kwargs: dict[str, Any] = spelled_out(_COMMON | args, given)
    if fetched:
        kwargs["pretrained_cfg_overlay"] = {**(given.get("pretrained_cfg_overlay") or {}), "file": str(fetched)}
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    model = build_model_with_cfg(
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
    if fetched:
        for module in model.modules():  # of `features_only` the network inside too
            getattr(module, "pretrained_cfg", {}).pop("file", None)  # it is saved with the model, a path is not
    return model


def _weights(variant: str, given: dict[str, Any]) -> tuple[Path | None, Iterable[str]]:
    """The authors' file, unless the caller names another source; and the names of the weights, where a file tells."""
    source: Any = resolve_pretrained_cfg(variant, given.get("pretrained_cfg"), given.get("pretrained_cfg_overlay"))
    if source.source or source.state_dict:  # the first brings its own arguments
        return None, source.state_dict or ()
    if source.file:
        return None, read_names(Path(source.file)) if Path(source.file).is_file() else ()
    if not source.has_weights:
        why = f"the authors published no weights of {variant}, only of {', '.join(_RELEASED)}"
        raise NoWeightsError(f"pretrained=True: {why}. Weights of your own load with checkpoint_path='FILE'", why)
    if source.hf_hub_id or source.url != _RELEASED.get(variant):
        return None, ()
    file = fetch(variant, source.url, given.get("cache_dir"))
    return file, read_names(file)


def _agreed(depths: tuple[int, ...], variant: str, given: dict[str, Any]) -> tuple[int, ...]:
    """The depths of the weights: of SOFT-Small the authors have two."""
    if tuple(given.get("depths", depths)) != depths:
        raise InputError(
            f"depths={tuple(given['depths'])} contradicts the weights of {variant}, which have {depths}: leave it out"
        )
    return depths


def _cfg(**kwargs) -> dict[str, Any]:
    return {
        "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "fixed_input_size": False,
        "crop_pct": 0.875, "interpolation": "bicubic", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.embed.0.conv", "classifier": "head", **kwargs,
    }  # fmt: skip


def _authors_cfg(variant: str, paper: str) -> dict[str, Any]:
    source = {"license": "mit", "origin_url": _WEIGHTS_PAGE, "paper_ids": f"arXiv:{paper}"}
    return _cfg(url=_RELEASED.get(variant), **source)


_SIZES = ("tiny", "small", "medium", "large", "huge")
_CFGS: dict[str, Any] = (
    {"soft_nano": _cfg(input_size=(3, 64, 64), pool_size=(2, 2))}  # of which there are no weights
    | {f"soft_{size}.fudan_in1k": _authors_cfg(f"soft_{size}", "2110.11945") for size in _SIZES}
    | {f"soft_norm_{size}.fudan_in1k": _authors_cfg(f"soft_norm_{size}", "2207.03341") for size in _SIZES}
)
default_cfgs = generate_default_cfgs(_CFGS)

_COMMON = dict(sr_ratios=(8, 4, 2, 1), value_kernels=(9, 5, 3, 3))
_TINY = dict(embed_dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16), depths=(1, 2, 3, 2))
# depths of the paper; the released code builds (1, 3, 20, 4), which pretrained=True takes from the file
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
    return _create("soft_nano", pretrained, args, kwargs)


@register_model
def soft_tiny(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Tiny, 13M parameters."""
    return _create("soft_tiny", pretrained, _TINY, kwargs)


@register_model
def soft_small(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Small, 24M parameters: the paper's depths."""
    return _create("soft_small", pretrained, _SMALL, kwargs)


@register_model
def soft_medium(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Medium, 46M parameters."""
    return _create("soft_medium", pretrained, _MEDIUM, kwargs)


@register_model
def soft_large(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Large, 65M parameters."""
    return _create("soft_large", pretrained, _LARGE, kwargs)


@register_model
def soft_huge(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT-Huge, 87M parameters."""
    return _create("soft_huge", pretrained, _HUGE, kwargs)


@register_model
def soft_norm_tiny(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Tiny: SOFT-Tiny with symmetric normalisation."""
    return _create("soft_norm_tiny", pretrained, _TINY | {"normalize": True}, kwargs)


@register_model
def soft_norm_small(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Small: SOFT-Small with symmetric normalisation."""
    return _create("soft_norm_small", pretrained, _SMALL | {"normalize": True}, kwargs)


@register_model
def soft_norm_medium(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Medium: SOFT-Medium with symmetric normalisation."""
    return _create("soft_norm_medium", pretrained, _MEDIUM | {"normalize": True}, kwargs)


@register_model
def soft_norm_large(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Large: SOFT-Large with symmetric normalisation."""
    return _create("soft_norm_large", pretrained, _LARGE | {"normalize": True}, kwargs)


@register_model
def soft_norm_huge(pretrained: bool = False, **kwargs) -> SoftmaxFreeTransformer:
    """SOFT++-Huge: SOFT-Huge with symmetric normalisation."""
    return _create("soft_norm_huge", pretrained, _HUGE | {"normalize": True}, kwargs)
