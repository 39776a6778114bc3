"""How a model starts from other weights: its backbone from theirs, and of its head what fits."""

import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timm.models import adapt_input_conv
from timm.models._features import FeatureDictNet
from torch import Tensor, nn

from softmaxfree.errors import InputError
from softmaxfree.models.backbone import AbstractBackbone
from softmaxfree.models.parts import Parts, parts_of
from softmaxfree.models.record import NAME, decode, encode
from softmaxfree.models.released import checkpoint_filter_fn
from softmaxfree.printing import few
from softmaxfree.tasks.sources import Source

__all__ = ["Started", "start", "told_of_timm"]

_PREFIXES = ("network.backbone.net.", "encoder.model.")  # of the backbones of detectors and segmenters
_SHOWN = 4  # layers named in a line
_OF_THE_HEAD = ("global_pool", "output_stride")  # in a record: what must agree where the head is loaded

_Weights = Mapping[str, Tensor]


class Started(NamedTuple):
    """What came of it.

    Attributes:
        told: in one line: what was loaded, left out and made anew.
        told_anew: the same line, if the layers of the classes are made anew after all.
        first: what the layers of the classes held before, where they were loaded; empty where they were not.
    """

    told: str
    told_anew: str
    first: dict[str, Tensor]


def start(model: nn.Module, name: str, num_classes: int, source: Source) -> Started:
    """Load into a model what fits of other weights.

    The backbone must fit as a whole. The head is loaded where it is of the same kind and width, and its layers of
    classes where they are of as many classes; else they stay as they are: new.

    Args:
        model: classifier of timm, detector or segmenter.
        name: of its backbone.
        num_classes: of its head.
        source: the weights.

    Returns:
        What was loaded.

    Raises:
        InputError: they are of another architecture; nothing is loaded then.
    """
    parts, own = parts_of(model), model.state_dict()
    prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in source.weights)), "")
    inner = _inner(model, parts)
    ours = _canonical([key for key in own if parts.in_backbone(key)], parts.backbone)
    theirs = _plain(source.weights, prefix)
    fits = all(canonical in theirs and theirs[canonical].shape == own[key].shape for canonical, key in ours.items())
    theirs, told = _filtered(_plain(source.weights, prefix), inner, fits)
    told += _adapted(theirs, _backbone(model, parts), lambda key: own.get(ours.get(key.replace("_", "."), "")))
    them = _canonical(theirs, "")

    taken = {key: theirs[them[canonical]] for canonical, key in ours.items() if canonical in them}
    classes = {canonical for canonical, key in them.items() if parts.in_classes(key)}
    extra = [canonical for canonical in them if canonical not in ours and canonical not in classes]
    missing = [canonical for canonical in ours if canonical not in them and not canonical.endswith(NAME)]
    wrong = [(key, new) for key, new in taken.items() if not key.endswith(NAME) and new.shape != own[key].shape]
    here = _plain({key: own[key] for key in ours.values()}, parts.backbone)
    others = [f"it has no {key}" for key in _pieces(missing, here, them, 1)]
    others += [f"it has a {key} too" for key in _pieces(extra, theirs, ours, 2 if parts.backbone else 1)]
    if all(key.endswith(NAME) for key in taken):
        others.insert(0, f"no weight of it is there, but {next(iter(source.weights), 'none')}")
    if wrong or others:
        raise InputError(_refusal(name, source, own, wrong, others))
    taken |= (head := _head(parts, prefix, source.weights if parts.backbone else theirs, own))
    first = {key: own[key].clone() for key in head if parts.in_classes(key)}
    if not first:
        taken = {key: _without_head(value) if key.endswith(NAME) else value for key, value in taken.items()}
    if any("resampled" in decode(value) for key, value in taken.items() if key.endswith(NAME)):
        told.append("position tables resampled to another image size")
    made = _adoptable(inner)
    try:
        with warnings.catch_warnings():  # of what the line tells
            warnings.filterwarnings("ignore", "position tables are resampled")
            warnings.filterwarnings("ignore", "the weights were trained with")
            model.load_state_dict({**own, **taken})
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"model.init_from: {source.where} does not fit {name}: {reason}") from error
    for key, value in _adoptable(inner).items():
        if value != made[key] != inner.adjustable_defaults[key]:
            told.append(f"with their {key} {value} in place of {made[key]}")

    def line(loaded: _Weights, of_classes: bool) -> str:
        left = [*(them[canonical] for canonical in extra), *(() if of_classes else classes)]
        new = [key for key in own if key not in loaded and not key.endswith(NAME)]
        return _start_line(model, source, num_classes, loaded, left, new, told)

    without = {key: value for key, value in taken.items() if key not in first}
    return Started(line(taken, bool(first)), line(without, False), first)


def told_of_timm(model: nn.Module, num_classes: int) -> str:
    """Return in one line what a model has of timm's weights, with which it was made."""
    parts = parts_of(model)
    config: Any = getattr(_backbone(model, parts), "pretrained_cfg", {})
    tag = f".{config['tag']}" if config.get("tag") else ""
    made = [key for key in model.state_dict() if not parts.in_backbone(key)]
    if not parts.backbone and config.get("num_classes") == num_classes:
        made = []
    loaded = sum(p.numel() for key, p in model.named_parameters() if key not in made)
    what = "all of the head" if parts.backbone else _layers(made)
    new = f"; made anew: {what} for {num_classes} classes" if made else ""
    return f"{loaded / 1e6:.2f} M parameters from timm's {config.get('architecture', '')}{tag}{new}"


def _backbone(model: Any, parts: Parts) -> Any:
    return model.get_submodule(parts.backbone.removesuffix(".")) if parts.backbone else model


def _inner(model: nn.Module, parts: Parts) -> Any:
    """The model of timm itself; None where `features_only` has taken it apart."""
    net = _backbone(model, parts)
    return None if isinstance(net, FeatureDictNet) else getattr(net, "model", net) if parts.backbone else net


def _adoptable(inner: Any) -> dict[str, Any]:
    """What weights may bring along that their shapes do not tell."""
    return inner.adjustable_args if isinstance(inner, AbstractBackbone) else {}


def _plain(weights: _Weights, prefix: str) -> dict[str, Tensor]:
    """The weights of a backbone without what their names begin with."""
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    wrapped = all(key.startswith("model.") for key in own)
    return {key.removeprefix("model."): value for key, value in own.items()} if wrapped else own


def _canonical(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Names by what classifier and `features_only`, which flattens `stages.0` to `stages_0`, have in common."""
    short = {name: name.removeprefix(prefix) for name in names}
    wrapped = all(name.startswith("model.") for name in short.values())
    return {(one.removeprefix("model.") if wrapped else one).replace("_", "."): name for name, one in short.items()}


def _filtered(theirs: dict[str, Tensor], inner: Any, fits: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the model's names and at its image size, by timm's convention of a filter beside the model."""
    if isinstance(inner, AbstractBackbone):
        function: Any = checkpoint_filter_fn
    else:
        function = getattr(sys.modules.get(type(inner).__module__), "checkpoint_filter_fn", None)
        if fits or function is None:
            return theirs, []
    try:
        new = dict(function(theirs, inner))
    except InputError:
        raise
    except Exception:  # of weights that are of another model, as is said then
        return theirs, []
    told = [key for key, value in new.items() if key in theirs and value.shape != theirs[key].shape and key != NAME]
    return new, [f"resampled: {_layers(told)}"] if told else []


def _adapted(theirs: dict[str, Tensor], inner: Any, own: Any) -> list[str]:
    """Let the first convolution take as many channels as the model's, by timm's rule."""
    names = (getattr(inner, "pretrained_cfg", None) or {}).get("first_conv") or ()
    told = []
    for name in (names,) if isinstance(names, str) else names:
        weight, wanted = theirs.get(f"{name}.weight"), own(f"{name}.weight")
        if weight is None or wanted is None or weight.ndim != 4 or wanted.ndim != 4:
            continue
        there, here = weight.shape[1], wanted.shape[1]
        if there != here and weight.shape[0] == wanted.shape[0] and weight.shape[2:] == wanted.shape[2:]:
            theirs[f"{name}.weight"] = adapt_input_conv(here, weight, base_chans=there)
            told.append(f"{name} adapted from {there} to {here} channels")
    return told


def _pieces(absent: list[str], names: Iterable[str], others: Iterable[str], depth: int) -> list[str]:
    """Names of which the others lack a piece of a part that they have: a whole part may be absent, no piece of one."""
    there = {".".join(other.split(".")[:i]) for other in others for i in range(1, 5)}
    plain = {name.replace("_", "."): name for name in names}
    tops = {plain[one]: ".".join(plain[one].split(".")[:depth]).replace("_", ".") for one in absent}
    return [name for name, top in tops.items() if top in there]


def _head(parts: Parts, prefix: str, weights: _Weights, own: _Weights) -> dict[str, Tensor]:
    """What can be taken of the head."""
    if prefix != parts.backbone:
        return {}
    rest = [key for key in own if not parts.in_backbone(key)]
    fits = {key: weights[key] for key in rest if key in weights and weights[key].shape == own[key].shape}
    classes = [key for key in rest if parts.in_classes(key)]
    if any(key not in fits for key in rest if key not in classes):  # of another kind or width
        return {}
    return fits if all(key in fits for key in classes) else {k: v for k, v in fits.items() if k not in classes}


def _without_head(record: Tensor) -> Tensor:
    return encode({key: value for key, value in decode(record).items() if key not in _OF_THE_HEAD})


def _refusal(name: str, source: Source, own: _Weights, pairs: list[tuple[str, Tensor]], others: list[str]) -> str:
    there = source.model or "another model"
    if pairs:
        key, weight = pairs[0]
        why = f"{key} is {tuple(weight.shape)} there and {tuple(own[key].shape)} here"
    else:
        why = others[0]
    same = there.split(".")[0] == name.split(".")[0]
    if same:
        what = f"is of {there}, as this model is, but made with other model.model_args: {why}"
    else:
        what = f"is of {there}, and this model is {name}: {why}"
    if (folder := Path(source.where).parent).joinpath("config.json").is_file():
        what += f"; the model of that folder is --model.name local-dir:{folder} --init-from pretrained"
    return f"model.init_from: {source.where} {what}"


def _start_line(
    model: nn.Module,
    source: Source,
    num_classes: int,
    taken: _Weights,
    left: list[str],
    new: list[str],
    more: list[str],
) -> str:
    """The line."""
    of = f" of {source.model}" if source.model else ""
    parameters = sum(p.numel() for key, p in model.named_parameters() if key in taken)
    tensors = sum(not key.endswith(NAME) for key in taken)
    line = [f"{tensors} tensors ({parameters / 1e6:.2f} M parameters){of} from {source.where}", *more]
    if left:
        line.append(f"left out: {_layers(left)}")
    if new:
        parts = parts_of(model)
        whole = parts.backbone and all(key in new for key in model.state_dict() if not key.startswith(parts.backbone))
        classes = f"{num_classes} classes" + (f" ({source.num_classes} there)" if source.num_classes else "")
        line.append(f"made anew: {'all of the head' if whole else _layers(new)} for {classes}")
    return "; ".join(line)


def _layers(names: Iterable[str]) -> str:
    """Names of layers in few words: the deepest that hold the weights, without the ends of names."""
    layers = list(dict.fromkeys(re.sub(r"\.[^.]+$", "", name) for name in names))
    return few(layers, _SHOWN)
