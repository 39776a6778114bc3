"""Tables on the terminal, in text and in Markdown; results of a command in the format that is asked for."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from softmaxfree.atomic import atomic_write
from softmaxfree.printing import printable

__all__ = ["markdown_table", "plain_table", "print_table", "summary_rows", "write_results"]

_Rows = Sequence[Sequence[str]]


def print_table(columns: Sequence[str], rows: _Rows) -> None:
    """Print a table: drawn by rich on a terminal where rich is installed, else as plain text."""
    if not sys.stdout.isatty():
        print(plain_table(columns, rows))
        return
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(plain_table(columns, rows))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, right in zip(columns, _numeric(rows), strict=True):
        table.add_column(printable(column).replace(" ", "\n"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    Console(markup=False).print(table)


def plain_table(columns: Sequence[str], rows: _Rows) -> str:
    """Return a table as aligned columns."""
    return "\n".join("  ".join(cells).rstrip() for cells in _aligned(columns, rows))


def markdown_table(columns: Sequence[str], rows: _Rows) -> str:
    """Return a table in Markdown."""
    head, *body = _aligned(columns, rows)
    rule = ["-" * (len(cell) - right) + ":" * right for cell, right in zip(head, _numeric(rows), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def write_results(
    results: list[dict[str, Any]],
    format: str,
    out: str | Path | None,
    table_of: Callable[[list[dict[str, Any]]], tuple[list[str], list[list[str]]]],
    csv_of: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Print or write results.

    Args:
        results: one or more, plain data.
        format: "table", "json" or "csv".
        out: file to write to, which is told; None prints.
        table_of: makes columns and rows of them.
        csv_of: makes the text of a CSV file of them.

    Raises:
        OSError: the file cannot be written.
    """
    if format == "table" and out is None:
        print_table(*table_of(results))
        return
    if format == "json":
        # names of files may hold any bytes: JSON has an escape for them
        text = json.dumps(results, indent=2, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"
    else:
        text = csv_of(results) if format == "csv" else plain_table(*table_of(results)) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    with atomic_write(out) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")
    many = "1 entry" if len(results) == 1 else f"{len(results)} entries"
    print(f"written  {many} into {out}", file=sys.stderr)  # OUT may be the screen


def summary_rows(task: Any, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return what a task's summary says of metrics, labels and values; what has no value is there as the main one only.

    COCO's precision of large objects has none where no object is large.
    """
    known = {key: metrics.get(key, math.nan) for key in task.summary}
    told = {key: row for key, row in task.summary.items() if key == task.monitor or not math.isnan(known[key])}
    return [(label, f"{factor * metrics[key]:.{digits}f}") for key, (label, factor, digits) in told.items()]


def _aligned(columns: Sequence[str], rows: _Rows) -> list[list[str]]:
    columns, rows = list(map(printable, columns)), [list(map(printable, row)) for row in rows]
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    numeric = _numeric(rows)
    return [
        [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        for row in (columns, *rows)
    ]


def _numeric(rows: _Rows) -> list[bool]:
    return [all(map(_is_number, cells)) for cells in zip(*rows, strict=True)]


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "") or 0)  # a gap among numbers is none of its own
    except ValueError:
        return False
    return True
