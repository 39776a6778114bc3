"""Files that are either whole or not there."""

import csv
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["atomic_write", "write_csv", "write_json"]

_LONGEST_SUFFIX = 32  # bytes: the temporary name must be short enough for any file system


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; what was written there becomes the content of `path` when the block ends.

    After an error, or when the process is killed, the file that `path` named before is still there. Of several
    writers of one file the last one wins. A link stays a link, and what it points to is replaced; an existing file
    keeps its permissions. A device or a pipe, which cannot be replaced, is opened and written.

    Args:
        path: the file to write; its folder is made if need be.

    Yields:
        The path to write to. It keeps the suffix, from which many writers tell the format.

    Raises:
        OSError: the file cannot be written; if the disk is full, the message says so and what is left.
    """
    path = Path(path)
    before = _stat(path)
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file to write", str(path))
    stream = None if before is None else _stream(path, before)
    if stream is not None:
        with stream, tempfile.TemporaryDirectory() as folder:
            yield (part := Path(folder, f"part{_suffix(path)}"))
            with part.open("rb") as file:
                shutil.copyfileobj(file, stream)
        return
    target = Path(os.path.realpath(path))
    if before is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{secrets.token_hex(8)}{_suffix(target)}")  # hidden, should a killed writer leave it
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before the bytes
        if before is not None:
            part.chmod(stat.S_IMODE(before.st_mode))
        os.replace(part, target)
    except OSError as error:
        raise _of_path(error, part, path, existed=before is not None) from error
    except RuntimeError as error:  # torch's, about what it could not end because of an error before
        if not isinstance(cause := error.__context__, OSError):
            raise
        raise _of_path(cause, part, path, existed=before is not None) from error
    finally:
        part.unlink(missing_ok=True)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with a column for each key of any row; a cell whose row lacks the key is empty.

    Args:
        path: the file to write.
        rows: of the table.

    Raises:
        OSError: the file cannot be written.
    """
    # names of files may be of any bytes, which `surrogateescape` writes as they are
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, content: Any) -> None:
    """Write plain data, readable by eye; what is no plain data is written as text.

    Args:
        path: the file to write.
        content: dicts, lists, texts and numbers.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n"
    with atomic_write(path) as part:  # names of files may be of any bytes, for which JSON has an escape
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):  # of a link too that points to nothing yet
        return None


def _stream(path: Path, about: os.stat_result) -> BinaryIO | None:
    """What is open already or cannot be replaced, ready to be written; None for an ordinary file."""
    for standard in (sys.stdout, sys.stderr):
        try:
            number = standard.fileno()
            same = os.path.samestat(about, os.fstat(number))
        except (OSError, ValueError, AttributeError):  # closed, or no file at all
            continue
        if same:  # /dev/stdout: to open it again would start at its beginning
            standard.flush()
            return os.fdopen(os.dup(number), "wb")
    return None if stat.S_ISREG(about.st_mode) else path.open("wb")


def _suffix(path: Path) -> str:
    return path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""


def _of_path(error: OSError, part: Path, path: Path, *, existed: bool) -> OSError:
    """The error with the name that the user knows; of a full disk with what is left."""
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(part.parent).free / 1e6
        kept = "; the file of that name is the last good one" if existed else ""
        return OSError(errno.ENOSPC, f"no space left on the disk ({free:.1f} MB free){kept}", str(path))
    if error.errno is not None and error.filename in (None, str(part)):
        return OSError(error.errno, error.strerror, str(path))
    return error
