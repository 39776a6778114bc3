"""What the tables of the pages are made of: the rows of a CSV, cells, and the line with machine and commit."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
Rows = list[dict[str, str]]
MACHINE = ("device", "threads", "torch", "timm", "softmaxfree", "commit", "date")


def told(name: str, rows: Rows, constant: str = "") -> str:
    """The line below a table: machine, versions, commit, and the file."""
    keys = {key: ", ".join(dict.fromkeys(row[key] for row in rows)) for key in MACHINE if key in rows[0]}
    threads = f"{keys['threads']} thread{'s' * (keys['threads'] != '1')}"
    versions = " ".join(f"{key} {keys[key]}" for key in ("torch", "timm", "softmaxfree"))
    line = f"{constant}{keys['device']}, {threads}; {versions}; commit {keys['commit']};"
    return f"\n\n*{line}* [CSV](../benchmarks/{name}.csv)"


def rounded(value: str) -> str:
    """Three digits that count, as a plain number."""
    return f"{float(f'{float(value):.3g}'):,g}"


def grid(what: str, cells: dict[tuple[str, int], str]) -> str:
    """A table of cells by name and count; one that was not measured is empty."""
    counts = sorted({count for _, count in cells})
    lines = [
        [name, *(cells.get((name, count), "") for count in counts)] for name in dict.fromkeys(who for who, _ in cells)
    ]
    return markdown([what, *(f"{count:,}" for count in counts)], lines)


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells that are numbers stand to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    numeric = [all(re.fullmatch(r"[-+\d.,e]*", cell) for cell in cells) for cells in zip(*rows, strict=True)]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def read(name: str) -> Rows:
    """The rows of a CSV of `benchmarks`."""
    with (ROOT / "benchmarks" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def percent(part: str) -> str:
    """A part of one, in percent with one digit."""
    return f"{100 * float(part):.1f}"
