"""What weights are tied to, carried by the weights themselves.

Weights of equal shapes can compute different functions: 20 Newton steps are not an inverse, and heads, sampling strides
or the shape of a position table leave no trace in a size. So each state dict holds, beside the weights, `record`: a
JSON text as bits, each a 0 or 1 in floating point. These survive what weights go through: averages (which round
integers and cannot subtract bools), `.half()` (which rounds other floats), safetensors (which holds only tensors).
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.layers import PositionTable
from softmaxfree.models.mixing import CLASS_TOKEN

if TYPE_CHECKING:
    from softmaxfree.models.backbone import AbstractBackbone

__all__ = ["NAME", "adopt", "decode", "encode", "mismatch", "record_of"]

NAME = "record"
"""Of the buffer, and so of the entry in a state dict."""

_BYTES = 2048  # a record takes a multiple of it, so that two records mostly have one shape
_CHOSEN = ("global_pool", "output_stride")  # must agree where the head is loaded too, unless the model is no usual one


def record_of(model: "AbstractBackbone") -> dict[str, Any]:
    """Returns all that a model's weights are tied to and their shapes do not tell, as plain data."""
    groups = model.mixer_groups
    return {
        "num_heads": list(model.num_heads[: len(groups)]),
        "mixers": [group[0].config() if group else {"name": CLASS_TOKEN} for group in groups],
        "global_pool": model.global_pool,
        "output_stride": model.output_stride,
        "grids": [list(table.grid) for table in model.modules() if isinstance(table, PositionTable)],
        **getattr(model, "fixed_args", {}),
    }


def encode(record: Mapping[str, Any]) -> Tensor:
    """Returns plain data as bits: 0 or 1 in float32, a multiple of 16,384 of them."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _BYTES) * _BYTES, b"\0")
    return torch.from_numpy(np.unpackbits(np.frombuffer(text, np.uint8))).float()


def decode(bits: Tensor) -> dict[str, Any]:
    """Returns what `encode` was given; the bits may have become numbers of any dtype.

    Args:
        bits: `(8192 n,)`, also as versions before 0.2.0 wrote them.

    Returns:
        The record.

    Raises:
        InputError: it is none.
    """
    try:
        text = np.packbits(bits.detach().float().cpu().numpy() > 0.5).tobytes().rstrip(b"\0")
        record = dict(json.loads(text))
        if any(not isinstance(record.get(key, []), list) for key in ("num_heads", "sr_ratios", "grids", "mixers")):
            raise ValueError("numbers in place of lists")
        return _by_stage(record)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"the weights' {NAME!r} cannot be read ({error}): they are damaged") from error


def mismatch(model: "AbstractBackbone", record: Mapping[str, Any], with_head: bool) -> str | None:
    """Compares what weights were trained as with what a model is.

    Args:
        model: takes the weights.
        record: of the weights.
        with_head: whether they include the classifier.

    Returns:
        Why the weights would compute another function in the model; None if they would not.
    """
    own = record_of(model)
    # weights of one stride or pooling in a network of another are common practice, but nobody's default
    usual = {"global_pool": model.usual_pool, "output_stride": 32}
    pairs = [(key, record[key], own[key]) for key in _CHOSEN if key in record and with_head and own[key] == usual[key]]
    # what a record of an earlier version does not tell was always the usual
    pairs += [(key, record.get(key, usual), own[key]) for key, usual in getattr(model, "usual_args", {}).items()]
    if "num_heads" in record:  # of a network cut short the first stages count
        theirs, ours = record["num_heads"], own["num_heads"]
        pairs.append(("num_heads", theirs[: len(ours)], ours[: len(theirs)]))
    for group, config, recorded in _groups(model, own, record):
        able = group[0].adjustable if group else ()
        fixed = [key for key in sorted(recorded, key="name".__ne__) if key not in able]  # the mixer first
        if group or "name" in recorded:  # before 0.2.0 the class token's stage was recorded as if it were soft
            pairs += [("mixer" if key == "name" else key, recorded[key], config.get(key)) for key in fixed]
    for key, theirs, ours in pairs:
        if theirs != ours:
            return f"the weights were trained with {key}={theirs!r}, this model has {key}={ours!r}: make it with theirs"
    return None


def adopt(model: "AbstractBackbone", record: Mapping[str, Any]) -> None:
    """Sets what the weights with this record were trained with; warns where that undoes somebody's choice."""
    if "resampled" in record:
        warnings.warn(
            f"position tables are resampled, from {' and '.join(record['resampled'])} tokens: the model has another "
            "img_size or output_stride than the weights, and its logits are others",
            stacklevel=2,
        )
    undone: dict[str, str] = {}
    for group, config, recorded in _groups(model, record_of(model), record):
        for key in group[0].adjustable if group else ():
            if key not in recorded or recorded[key] == config[key]:
                continue
            if config[key] != model.adjustable_defaults[key]:
                undone[key] = (
                    f"the weights were trained with {key}={recorded[key]}, which is used; the model was made with "
                    f"{config[key]}, which set_{key}() brings back"
                )
            for mixer in group:
                mixer.adjust(**{key: recorded[key]})
    for message in undone.values():
        warnings.warn(message, stacklevel=2)


def _groups(model: "AbstractBackbone", own: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[tuple]:
    """Of each stage the mixers, their configuration, and that which the weights recorded."""
    yield from zip(model.mixer_groups, own["mixers"], record.get("mixers", ()), strict=False)


def _by_stage(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record that tells each stage's mixer, also of one that knows SOFT alone, as before 0.2.0."""
    common: dict[str, Any] = {
        key: record.pop(key) for key in ("solver", "landmark_sampling", "normalize") if key in record
    }
    if "landmark_grid" in record:
        common["landmark_grid"] = record.pop("landmark_grid") or "unbounded"
    ratios = [{"ratio": ratio} for ratio in record.pop("sr_ratios", ())]
    if common or ratios:
        record["mixers"] = [common | own for own in ratios or [{}] * 4]
    return record
