"""State dicts from files of any kind, read without running code that they may hold."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import timm.models
from safetensors import SafetensorError, safe_open

from softmaxfree.errors import InputError

__all__ = ["read_names", "read_tensors", "refusal"]


def read_tensors(path: Path) -> dict[str, Any]:
    """Read the state dict of a file that exists.

    Args:
        path: a `.safetensors`, or what `torch.save` wrote. Averaged weights (EMA) are taken where the file has them.

    Returns:
        What the file has under the names of weights, on the CPU.

    Raises:
        InputError: it cannot be read without running code, or not at all.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, about files that it then refuses
            return timm.models.load_state_dict(str(path))
    except Exception as error:  # whatever a decoder makes of foreign bytes
        raise InputError(refusal(path, error)) from error


def read_names(path: Path) -> list[str]:
    """Read the names of the weights that `read_tensors` would read; of a `.safetensors` nothing but them is read.

    Args:
        path: of the file.

    Returns:
        The names.

    Raises:
        InputError: as `read_tensors`.
    """
    if path.suffix != ".safetensors":
        return list(read_tensors(path))
    try:
        with safe_open(str(path), framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise InputError(refusal(path, error)) from error


def refusal(path: Path, error: Exception) -> str:
    """Return in words why a file of weights cannot be read.

    Args:
        path: the file.
        error: that was raised.

    Returns:
        One line, which names the file.
    """
    cause = error.__cause__ or error
    if not path.stat().st_size:
        return f"{path} cannot be read as weights: it is empty"
    if isinstance(cause, AttributeError | TypeError):  # timm asks it for names
        return f"{path} holds no weights by name; allowed are a state dict as torch.save writes it, and .safetensors"
    if _is_text(path):
        return f"{path} is a text, no file of weights; allowed are what torch.save writes, and .safetensors"
    if isinstance(cause, pickle.UnpicklingError):
        if not _may_be_pickled(path):
            return f"{path} is no file of weights; allowed are what torch.save writes, and .safetensors"
        code = re.search(r"GLOBAL ([\w.]+)", str(cause))
        return (
            f"{path} is refused: {code[1] if code else 'code'} would have to run to read it, and a file can "
            "hold any code. If you trust it, load it elsewhere and save its state dict alone"
        )
    said = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
    return f"{path} cannot be read as weights; it may be cut off ({said})"


def _may_be_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    return start == b"PK" or (start[:1] == pickle.PROTO and start[1:] <= bytes([pickle.HIGHEST_PROTOCOL]))


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1024)
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        text = "" if error.end < len(start) else start[: error.start].decode("utf-8")  # a letter may be cut in two
    return bool(text) and "".join(text.split()).isprintable()
