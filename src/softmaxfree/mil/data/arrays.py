"""Arrays in files of features: HDF5, npy and pt, of which only the rows that are asked for are read."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softmaxfree.errors import InputError

__all__ = ["SUFFIXES", "Array", "look", "names_in", "read"]

SUFFIXES = (".h5", ".hdf5", ".pt", ".npy")
"""Of the files that are read, in the order in which they are looked for."""

_H5 = (".h5", ".hdf5")
_FEW = 8  # of so many rows at most one is read, for rows to be read alone: else blocks of all are quicker
_BLOCK = 4096  # rows


class Array(NamedTuple):
    """An array in a file.

    Attributes:
        path: of the file.
        key: of the array in it; "" where the file is one array.
        shape: without a leading axis of one bag.
        attributes: what the file says of it; empty but in HDF5.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    attributes: dict[str, Any]


def names_in(path: Path, slide: str = "") -> list[str]:
    """Return the keys of the arrays of a file; [""] of a file that is one array; raises InputError if it is broken."""
    with _opened(path, slide) as content:
        return [""] if not isinstance(content, Mapping) else [str(key) for key in content]


def look(path: Path, key: str, slide: str) -> Array:
    """Look at an array without reading it.

    Args:
        path: of the file.
        key: of the array, in files that hold several.
        slide: whose it is, for messages.

    Returns:
        What is known of it.

    Raises:
        InputError: the file is broken, or has no such array; that names slide and file.
    """
    with _opened(path, slide) as content:
        if not isinstance(content, Mapping):
            return Array(path, "", _shape(content), {})
        if key not in content or not hasattr(content[key], "shape"):
            found = ", ".join(map(str, content)) or "nothing"
            raise InputError(f"slide {slide}: {path} has no array {key!r}; it holds {found}")
        return Array(path, key, _shape(content[key]), dict(getattr(content[key], "attrs", {})))


def read(array: Array, rows: np.ndarray | None = None, slide: str = "") -> Tensor:
    """Read an array, or rows of it.

    Args:
        array: which.
        rows: (k,) int64, ascending; None reads all.
        slide: whose it is, for messages.

    Returns:
        The values, in the precision of the file.

    Raises:
        InputError: the file is broken.
    """
    with _opened(array.path, slide) as content:
        stored = content[array.key] if array.key else content
        single = len(stored.shape) > len(array.shape)
        if isinstance(stored, Tensor):
            tensor = stored[0] if single else stored
            return _numbers(array, slide, lambda: _of_tensor(tensor, rows))
        if hasattr(stored, "chunks"):
            values = _of_h5(array, stored, rows, single)
        else:
            own = stored[0] if single else stored
            values = np.array(own if rows is None else own[rows])
    native = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    return _numbers(array, slide, lambda: torch.from_numpy(native))


def _of_tensor(stored: Tensor, rows: np.ndarray | None) -> Tensor:
    tensor = stored.detach()
    float8 = tensor.is_floating_point() and tensor.element_size() < 2
    if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized or float8:
        raise TypeError
    return tensor.clone() if rows is None else tensor[torch.from_numpy(rows)]


def _numbers(array: Array, slide: str, make: Callable[[], Tensor]) -> Tensor:
    """What is made of numbers that torch computes with."""
    try:
        return make()
    except TypeError as error:
        whose = f"slide {slide}: " if slide else ""
        raise InputError(
            f"{whose}{array.key or 'the array'} in {array.path} is not of numbers that torch takes"
        ) from error


def _of_h5(array: Array, stored: Any, rows: np.ndarray | None, single: bool) -> np.ndarray:
    """Rows of a data set of HDF5; h5py's own selection of many rows is slow, so it is not used."""
    lead = (0,) if single else ()
    if rows is None:
        return stored[lead] if lead else stored[()]
    offset = stored.id.get_offset()
    if offset is not None and stored.dtype.isnative:  # it lies in one piece
        mapped = np.memmap(array.path, stored.dtype, "r", offset, stored.shape)
        return np.array((mapped[0] if single else mapped)[rows])
    out = np.empty((len(rows), *array.shape[1:]), stored.dtype)
    if _FEW * len(rows) < array.shape[0]:
        for i, row in enumerate(rows.tolist()):
            out[i] = stored[(*lead, row)]
        return out
    for start in range(0, array.shape[0], _BLOCK):
        first, end = np.searchsorted(rows, (start, start + _BLOCK))
        if first < end:
            block = stored[(*lead, slice(start, min(start + _BLOCK, array.shape[0])))]
            out[first:end] = block[rows[first:end] - start]
    return out


def _shape(stored: Any) -> tuple[int, ...]:
    shape = tuple(map(int, stored.shape))
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


@contextmanager
def _opened(path: Path, slide: str = "") -> Iterator[Any]:
    """The content of a file: a mapping of arrays, or one array; mapped to memory where the format allows."""
    whose = f"slide {slide}: " if slide else ""
    if not path.is_file():
        raise InputError(f"{whose}there is no file {path}")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{whose}{path} is no file of features; allowed are {', '.join(SUFFIXES)}")
    try:
        if path.suffix in _H5:
            import h5py

            with h5py.File(path, "r") as file:
                yield file
            return
        content: Any = np.load(path, mmap_mode="r") if path.suffix == ".npy" else _of_torch(path)
    except (InputError, ModuleNotFoundError):
        raise
    except Exception as error:  # each format has many kinds for a file that is none of its own
        raise InputError(f"{whose}{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, Mapping) and not hasattr(content, "shape"):
        raise InputError(f"{whose}{path} holds {type(content).__name__}, not an array of features")
    yield content


def _of_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # of the old format, which cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own advice is to run what the file says
        raise ValueError("it holds other things than tensors, or torch.save did not write it") from error
