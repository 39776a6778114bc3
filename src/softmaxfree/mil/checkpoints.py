"""Checkpoints of TransMIL from four libraries, told apart by the names of their weights."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from softmaxfree.errors import InputError
from softmaxfree.weights import read_tensors

__all__ = ["load_all", "read_transmil"]


class _Origin(NamedTuple):
    """A library: its name, a weight that it alone has, names to change, and the activation behind the embedding."""

    name: str
    sign: str
    names: tuple[tuple[str, str], ...]
    act: str


_ORIGINS = (
    _Origin(
        "TransMIL or MIL_BASELINE",
        "layer1.attn.to_qkv.weight",
        ((r"^_fc1\.", "embed."), (r"^_fc2\.", "head."), (r"^layer(\d+)\.", "layers.{}.")),
        "relu",
    ),
    _Origin(
        "MIL-Lab",
        "blocks.0.attention.to_qkv.weight",
        ((r"^patch_embed\.", "embed."), (r"^classifier\.", "head."), (r"\.attention\.", ".attn."),
         (r"^blocks\.(\d+)\.", "layers.{}.")),
        "relu",
    ),
    _Origin(
        "torchmil",
        "layers.0.att_module.qkv_nn.weight",
        ((r"^fc1\.", "embed.0."), (r"^classifier\.", "head."), (r"\.norm1\.", ".norm."),
         (r"\.att_module\.qkv_nn\.", ".attn.to_qkv.")),
        "none",
    ),
    _Origin("softmaxfree", "layers.0.attn.to_qkv.weight", (), "relu"),
)  # fmt: skip
_STORED = ("MIL-Lab", "torchmil")  # whose pad_mode is known
# sizes are read off these; None for any
_SHAPES: dict[str, tuple[int | None, ...]] = {
    "cls_token": (1, 1, None),
    "head.weight": (None, None),
    "layers.0.attn.res_conv.weight": (None, 1, None, 1),
}
_UNUSED = re.compile(r"^layers\.\d+\.norm2\.")  # torchmil keeps the norm of a feed-forward part that is not there


def read_transmil(
    source: str | Path | dict[str, Any],
    *,
    pad_mode: str | None = None,
    num_heads: int | None = None,
    num_landmarks: int | None = None,
    iterations: int = 6,
    act: str | None = None,
    dropout: float = 0.1,
    embed_dropout: float = 0.0,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a checkpoint of TransMIL: that of the original, of MIL_BASELINE, MIL-Lab, torchmil or of this package.

    Widths, depth, classes and the length of the convolution are read off the weights, so are the heads where there is
    that convolution. No library stores the rest.

    Args:
        source: a file of `torch.save`, read without running code, or `.safetensors`; or a state dict. The weights may
            lie below keys such as "state_dict", and may all have a prefix such as `module.` or `model.`; what does not
            have it, such as the weights of a loss, is left out.
        pad_mode: see `NystromAttention`. MIL-Lab and torchmil are "official". Must be given for others: logits of the
            original and MIL_BASELINE differ by tens of percent between versions of nystrom-attention.
        num_heads: must be given for torchmil, and for others is what the weights say.
        num_landmarks: None for half the width, the default of all four.
        iterations: steps towards the inverse; 6 is the default of all four.
        act: behind the embedding. None for the default: "relu", of torchmil "none". MIL_BASELINE can have "gelu" or
            "silu".
        dropout: behind attention, in training.
        embed_dropout: in the embedding, in training.

    Returns:
        Arguments of `TransMIL`, and its state dict.

    Raises:
        InputError: the origin is not known, an argument is missing, or weights do not fit each other.
    """
    told = _told(source)
    origin, weights = _own_weights(_mapping(source), told)
    for key, shape in _SHAPES.items():
        _check_shape(weights, key, shape, told)
    conv = weights.get("layers.0.attn.res_conv.weight")
    embedding = sorted(key for key in weights if re.fullmatch(r"embed\.\d+\.weight", key))
    for key in embedding[:1]:
        _check_shape(weights, key, (None, None), told)
    embed_dim = weights["cls_token"].shape[-1]
    depth = len({key.split(".")[1] for key in weights if key.startswith("layers.")})
    if depth == 1 and origin is _ORIGINS[0]:
        raise InputError(f"{told}: the weights of layer2 are missing: {origin.name} has two layers")
    if origin is _ORIGINS[0] and not any(key.startswith("embed.") for key in weights):
        raise InputError(f"{told}: the weights of _fc1 are missing: {origin.name} has an embedding")
    if pad_mode is None:
        if origin.name not in _STORED:
            raise InputError(
                f"pad_mode must be given for {told}: {origin.name} does not store which nystrom-attention trained it; "
                "'official' is 0.0.10 and later, 'official-0.0.9' what the requirements of TransMIL pin; in "
                "a recipe it is model.model_args.pad_mode"
            )
        pad_mode = "official"
    if conv is None and num_heads is None:
        default = " (its default is 4)" if origin.name == "torchmil" else ""
        raise InputError(f"num_heads must be given for {told}: {origin.name} does not store it{default}")
    if conv is not None and num_heads not in (None, conv.shape[0]):
        raise InputError(f"num_heads must be {conv.shape[0]} for {told}, as its weights are, got {num_heads}")
    arguments = {
        "num_classes": weights["head.weight"].shape[0],
        "in_dim": weights[embedding[0]].shape[1] if embedding else embed_dim,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads if conv is None else conv.shape[0],
        "num_landmarks": num_landmarks,
        "iterations": iterations,
        "conv_kernel": 0 if conv is None else conv.shape[2],
        "project_out": "layers.0.attn.to_out.0.weight" in weights,
        "dropout": dropout,
        "pad_mode": pad_mode,
        "embed_layers": len(embedding),
        "embed_dropout": embed_dropout,
        "act": act or origin.act,
    }
    return arguments, weights


def load_all(model: nn.Module, weights: dict[str, Tensor], source: str | Path | dict[str, Any]) -> None:
    """Loads weights of which none may be missing, left over or of another shape.

    Args:
        model: the network.
        weights: under its own names.
        source: where they come from, for the error.

    Raises:
        InputError: one of them is.
    """
    own = model.state_dict()
    wrong = dict.fromkeys(own.keys() - weights.keys(), "is missing")
    wrong |= dict.fromkeys(weights.keys() - own.keys(), "belongs to no part of the network")
    for key in own.keys() & weights.keys():
        if own[key].shape != weights[key].shape:
            wrong[key] = f"is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
    if wrong:
        key = min(wrong)
        more = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""
        raise InputError(f"{_told(source)}: the weight {key} {wrong[key]}{more}")
    model.load_state_dict(weights)


def _told(source: str | Path | dict[str, Any]) -> str:
    return "the state dict" if isinstance(source, Mapping) else str(source)


def _mapping(source: str | Path | dict[str, Any]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | Path):
        raise InputError(f"a checkpoint must be a file or a state dict, got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return read_tensors(path)


def _own_weights(given: Mapping[str, Any], told: str) -> tuple[_Origin, dict[str, Tensor]]:
    """Returns where the weights of a checkpoint come from, and those that are TransMIL's, under our names."""
    names: list[str] = []
    found: dict[str, tuple[_Origin, dict[str, Tensor]]] = {}
    for where, state in _state_dicts(given):
        for origin in _ORIGINS:
            for key in state:
                prefix = key.removesuffix(origin.sign)
                if prefix != key and (not prefix or prefix.endswith(".")):
                    own = {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}
                    found.setdefault(f"{where}{prefix}", (origin, _renamed(own, origin)))
        names += state
    if len(found) > 1:
        places = " and ".join(place.rstrip(".") or "the outermost keys" for place in found)
        raise InputError(f"{told} holds several networks, below {places}: give the state dict of one of them")
    if found:
        return next(iter(found.values()))
    signs = ", ".join(f"{own.sign} ({own.name})" for own in _ORIGINS)
    some = ", ".join(sorted(names)[:5]) or "none"
    raise InputError(f"{told} is no TransMIL of a known origin: one of {signs} must be there; found are {some}")


def _state_dicts(given: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields the place of a mapping and its tensors, then those of the mappings in it."""
    yield where, {key: value for key, value in given.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _state_dicts(value, f"{where}{key}.")


def _check_shape(weights: dict[str, Tensor], key: str, shape: tuple[int | None, ...], told: str) -> None:
    if key not in weights:
        if key.endswith("res_conv.weight"):
            return  # torchmil has none
        raise InputError(f"{told}: the weight {key} is missing")
    found = tuple(weights[key].shape)
    if len(found) != len(shape) or any(size not in (None, own) for size, own in zip(shape, found, strict=True)):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"{told}: the weight {key} is {found}, not ({sizes})")


def _renamed(state: dict[str, Tensor], origin: _Origin) -> dict[str, Tensor]:
    weights = {}
    for key, value in state.items():
        for pattern, new in origin.names:
            found = re.search(pattern, key)
            if found:
                # the original counts its layers from 1
                groups = [str(int(g) - pattern.startswith(r"^layer(")) for g in found.groups()]
                key = key[: found.start()] + new.format(*groups) + key[found.end() :]
        weights[key] = value
    return {key: value for key, value in weights.items() if not _UNUSED.match(key)}
