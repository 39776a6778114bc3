"""What weights are tied to, carried by the weights themselves.

Weights of equal shapes can compute different functions: 20 Newton steps are not an inverse, and heads, sampling strides
or the shape of a position table leave no trace in a size. So each state dict holds, beside the weights, `record`: a
JSON text as bits, each a 0 or 1 in floating point. These survive what weights go through: averages (which round
integers and cannot subtract bools), `.half()` (which rounds other floats), safetensors (which holds only tensors).
"""

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.layers import PositionTable
from softmaxfree.ops import as_solver

if TYPE_CHECKING:
    from softmaxfree.models.pyramid import SoftmaxFreeTransformer

__all__ = ["ADOPTED", "NAME", "adopt", "decode", "encode", "mismatch", "record_of"]

NAME = "record"
"""Of the buffer, and so of the entry in a state dict."""

_BYTES = 1024  # a record takes a multiple of it, so that two records mostly have one shape
ADOPTED = ("solver", "landmark_grid")
"""What loading sets."""

# what must agree; and what must where the head is loaded too, unless the model was made otherwise
_SAME = ("num_heads", "sr_ratios", "landmark_sampling", "normalize")
_CHOSEN = ("global_pool", "output_stride")


def record_of(model: "SoftmaxFreeTransformer") -> dict[str, Any]:
    """Returns all that a model's weights are tied to and their shapes do not tell, as plain data."""
    stages = len(model.stages)
    return {
        "solver": model.solver.to_dict(),
        "landmark_grid": None if model.landmark_grid is None else list(model.landmark_grid),
        "num_heads": list(model.num_heads[:stages]),
        "sr_ratios": list(model.sr_ratios[:stages]),
        "landmark_sampling": model.landmark_sampling,
        "normalize": model.normalize,
        "global_pool": model.global_pool,
        "output_stride": model.output_stride,
        "grids": [list(table.grid) for table in model.modules() if isinstance(table, PositionTable)],
    }


def encode(record: Mapping[str, Any]) -> Tensor:
    """Returns plain data as bits: 0 or 1 in float32, a multiple of 8,192 of them."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _BYTES) * _BYTES, b"\0")
    return torch.from_numpy(np.unpackbits(np.frombuffer(text, np.uint8))).float()


def decode(bits: Tensor) -> dict[str, Any]:
    """Returns what `encode` was given; the bits may have become numbers of any dtype.

    Args:
        bits: `(8192 n,)`.

    Returns:
        The record.

    Raises:
        InputError: it is none.
    """
    try:
        text = np.packbits(bits.detach().float().cpu().numpy() > 0.5).tobytes().rstrip(b"\0")
        record = dict(json.loads(text))
        if any(not isinstance(record.get(key, []), list) for key in ("num_heads", "sr_ratios", "grids")):
            raise ValueError("numbers in place of lists")
        return record
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"the weights' {NAME!r} cannot be read ({error}): they are damaged") from error


def mismatch(model: "SoftmaxFreeTransformer", record: Mapping[str, Any], with_head: bool) -> str | None:
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
    usual = {"global_pool": "token" if model.last_stage == "softmax" else "avg", "output_stride": 32}
    chosen = [key for key in _CHOSEN if with_head and own[key] == usual[key]]
    for key in (*_SAME, *chosen):
        theirs, ours = record.get(key, own[key]), own[key]
        if isinstance(ours, list):
            # a softmax stage samples no landmarks; of a network cut short the first stages count
            used = len(model.stages) - (key == "sr_ratios" and model.last_stage == "softmax")
            theirs, ours = theirs[:used], ours[: min(used, len(theirs))]
        if theirs != ours:
            return f"the weights were trained with {key}={theirs!r}, this model has {key}={ours!r}: make it with theirs"
    return None


def adopt(model: "SoftmaxFreeTransformer", record: Mapping[str, Any]) -> None:
    """Sets what the weights with this record were trained with; warns where that undoes somebody's choice."""
    if "resampled" in record:
        warnings.warn(
            f"position tables are resampled, from {' and '.join(record['resampled'])} tokens: the model has another "
            "img_size or output_stride than the weights, and its logits are others",
            stacklevel=2,
        )
    own, default = record_of(model), model.DEFAULTS
    for key in ADOPTED:
        if key not in record or record[key] == own[key]:
            continue
        if own[key] != default[key]:
            warnings.warn(
                f"the weights were trained with {key}={record[key]}, which is used; the model was made with "
                f"{own[key]}, which set_{key}() brings back",
                stacklevel=2,
            )
        if key == "solver":
            model.set_solver(as_solver(record[key]))
        else:
            model.set_landmark_grid(record[key])
