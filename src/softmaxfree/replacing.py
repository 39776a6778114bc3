"""The one check before a file is replaced that a user named."""

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from softmaxfree.errors import InputError

__all__ = ["require_free"]


def require_free(
    outputs: Iterable[str | Path],
    inputs: Iterable[str | Path],
    is_ours: Callable[[Path], bool],
    option: str = "--out",
) -> None:
    """Refuse to replace what is read, or what we have not made; links are followed.

    Args:
        outputs: files that will be written.
        inputs: files that are read, and folders of such.
        is_ours: whether a file is an earlier output, which may be replaced; an empty one is free.
        option: what names the outputs, for the message.

    Raises:
        InputError: an output is taken.
        OSError: what is there cannot be looked at.
    """
    read = {}
    for path in map(Path, inputs):
        for file in path.iterdir() if path.is_dir() else [path]:
            if (found := _stat(file)) is not None:
                read[found.st_dev, found.st_ino] = file
    for output in map(Path, outputs):
        about = _stat(output)
        if about is None or not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            continue
        if stat.S_ISDIR(about.st_mode):
            raise InputError(f"{option}: {output} is a folder, and a file of that name would be written")
        if (same := read.get((about.st_dev, about.st_ino))) is not None:
            raise InputError(f"{option}: {output} would replace {same}, which is read; name another place")
        if about.st_size and not is_ours(output):
            raise InputError(f"{option}: {output} is there and is no earlier output; name another place or move it")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
