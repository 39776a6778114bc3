"""Files that are either whole or not there."""

import csv
import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "write_csv"]


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes its name when the block ends.

    After an error, or when the process is killed, the file that `path` named before is still there.

    Args:
        path: the file to write; its folder is made if need be.

    Yields:
        The path to write to. It keeps the suffix, from which many writers tell the format.

    Raises:
        OSError: the file cannot be written; if the disk is full, the message says so and what is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers apart; the dot hides what a killed one leaves behind.
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before the bytes
        os.replace(part, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        before = "; the file of that name is the last good one" if path.exists() else ""
        raise OSError(errno.ENOSPC, f"no space left on the disk ({free:.1f} MB free){before}", str(path)) from error
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
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
