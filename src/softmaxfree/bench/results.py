"""Measurements on disk: one CSV a suite and kind of device."""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from softmaxfree.atomic import write_csv
from softmaxfree.bench.run import Row

__all__ = ["is_table", "label", "passes", "path_of", "pivot", "read", "slope", "write"]

_KEY = ("suite", "name", "batch", "size", "dtype", "compiled", "what")
_COLUMNS = {field.name: field.type for field in dataclasses.fields(Row)}
_READ: dict[Any, Any] = {int: int, float: float, str: str, bool: lambda text: text == "True"}


def path_of(folder: Path, suite: str, device: torch.device) -> Path:
    """Returns the CSV of a suite on a kind of device."""
    return folder / "results" / f"{suite}-{device.type}.csv"


def read(path: Path) -> list[Row]:
    """Returns the measurements of a CSV; none when there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{k: _READ[_COLUMNS[k]](v) for k, v in line.items()}) for line in csv.DictReader(file)]


def is_table(path: Path) -> bool:
    """Returns whether a file holds measurements: its head has the columns."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader(file), []) == list(_COLUMNS)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes measurements; of two of the same thing the later one stays, in the place of the earlier."""
    unique = {tuple(getattr(row, key) for key in _KEY): row for row in rows}
    write_csv(path, [dataclasses.asdict(row) for row in unique.values()])


def passes(rows: Sequence[Row]) -> list[str]:
    """Returns the passes that were measured, in the order of the rows."""
    return list(dict.fromkeys(row.what for row in rows))


def pivot(rows: Sequence[Row], what: str, value: str, relative_to: str = "") -> tuple[list[str], list[list[str]]]:
    """Returns a table of one pass: a line each contestant, a column each shape, in the order of the rows.

    Args:
        rows: measurements of one suite on one device.
        what: the pass.
        value: the field to show, such as `"median_ms"`.
        relative_to: divide by the value of this contestant; empty: show values as they are.

    Returns:
        Column heads and lines; an empty cell where nothing was measured.
    """
    chosen = [row for row in rows if row.what == what]
    shapes = sorted({(-row.batch, row.size) for row in chosen})
    values = {(label(row), -row.batch, row.size): getattr(row, value) for row in chosen}
    names = dict.fromkeys(label(row) for row in chosen)
    units = {shape: values.get((relative_to, *shape)) if relative_to else 1.0 for shape in shapes}

    def cell(name: str, shape: tuple[int, int]) -> str:
        number, unit = values.get((name, *shape)), units[shape]
        return "" if number is None or not unit else _short(number / unit)

    heads = ["", *(f"{size:,}" + (f", batch {-batch}" if batch < -1 else "") for batch, size in shapes)]
    return heads, [[name, *(cell(name, shape) for shape in shapes)] for name in names]


def label(row: Row) -> str:
    """Returns what a table or legend calls a contestant."""
    extras = [row.dtype] * (row.dtype != "float32") + ["compiled"] * row.compiled
    return row.name + (f" ({', '.join(extras)})" if extras else "")


def slope(rows: Sequence[Row], value: str) -> float | None:
    """Returns the power of the size with which a field grows at the three largest sizes; None for fewer."""
    import numpy as np

    points = [(row.size, getattr(row, value)) for row in rows if row.batch == 1 and getattr(row, value) > 0][-3:]
    if len(points) < 3:
        return None
    sizes, values = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(sizes, values, 1)[0])


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
