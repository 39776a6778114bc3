"""Checkpoints of TransMIL from four libraries, told apart by the names of their weights."""

import re
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
)  # fmt: skip
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
    """Reads a checkpoint of TransMIL: that of the original, of MIL_BASELINE, MIL-Lab or torchmil.

    Widths, depth, classes and the length of the convolution are read off the weights, so are the heads where there is
    that convolution. No library stores the rest.

    Args:
        source: a file of `torch.save`, read without running code, or `.safetensors`; or a state dict, also below
            "state_dict", and with `module.` or `model.` before its names.
        pad_mode: see `NystromAttention`. Must be given for the original and MIL_BASELINE, whose logits differ by tens
            of percent between versions of nystrom-attention; MIL-Lab and torchmil are "official".
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
    state = _plain_state(source)
    told = _told(source)
    origin = next((own for own in _ORIGINS if own.sign in state), None)
    if origin is None:
        signs = ", ".join(f"{own.sign} ({own.name})" for own in _ORIGINS)
        some = ", ".join(sorted(state)[:5]) or "none"
        raise InputError(f"{told} is no TransMIL of a known origin: one of {signs} must be there; found are {some}")
    weights = _renamed(state, origin)
    conv = weights.get("layers.0.attn.res_conv.weight")
    embedding = sorted(key for key in weights if re.fullmatch(r"embed\.\d+\.weight", key))
    embed_dim = weights["cls_token"].shape[-1]
    if pad_mode is None:
        if origin.act == "relu" and origin.sign.startswith("layer1"):
            raise InputError(
                f"pad_mode must be given for {told}: {origin.name} does not store which nystrom-attention trained it; "
                "'official' is 0.0.10 and later, 'official-0.0.9' what the requirements of TransMIL pin"
            )
        pad_mode = "official"
    if conv is None and num_heads is None:
        raise InputError(f"num_heads must be given for {told}: {origin.name} does not store it (its default is 4)")
    if conv is not None and num_heads not in (None, conv.shape[0]):
        raise InputError(f"num_heads must be {conv.shape[0]} for {told}, as its weights are, got {num_heads}")
    arguments = {
        "num_classes": weights["head.weight"].shape[0],
        "in_dim": weights[embedding[0]].shape[1] if embedding else embed_dim,
        "embed_dim": embed_dim,
        "depth": len({key.split(".")[1] for key in weights if key.startswith("layers.")}),
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
    return "the state dict" if isinstance(source, dict) else str(source)


def _plain_state(source: str | Path | dict[str, Any]) -> dict[str, Tensor]:
    if isinstance(source, dict):
        state = source
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        state = read_tensors(path)
    state = state.get("state_dict", state)
    return {
        re.sub(r"^(?:module\.|model\.)+", "", key): value for key, value in state.items() if isinstance(value, Tensor)
    }


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
