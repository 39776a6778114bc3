"""`softmaxfree bench`: times the attention and the models against their peers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from softmaxfree.atomic import atomic_write
from softmaxfree.bench import results
from softmaxfree.bench.plot import plot
from softmaxfree.bench.registry import SUITES
from softmaxfree.bench.run import run as measure
from softmaxfree.cli.device import find_device
from softmaxfree.cli.outputs import require_free
from softmaxfree.cli.table import markdown_table, print_table
from softmaxfree.errors import InputError
from softmaxfree.ops import dispatch

__all__ = ["run"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEADER = """# Benchmarks

Made by `softmaxfree bench` from `results/*.csv`; `softmaxfree bench --report` makes it again. Every contestant
was compared with float64 before it was timed (column `error` of the CSV). Times are medians in milliseconds.
An empty cell was not measured: too long, or nothing to measure.
"""


def run(
    suites: Sequence[str] = (),
    *,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    out: str = "benchmarks",
    only: Sequence[str] = (),
    size: Sequence[int] = (),
    max_seconds: float = 60,
    forward_only: bool = False,
    compile: bool = False,
    explain: bool = False,
    report: bool = False,
) -> None:
    """Time the attention and the models, and others to compare with.

    The result of each method is compared with float64 before it is timed. New times are added to OUT/results/*.csv;
    then the tables in OUT/README.md and the plots beside it are made again.

    Args:
        suites: What to time: attention, inverse or model. By default all three, which takes an hour on a CPU.
        device: Where to measure: `auto` (a GPU if there is one, or else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: Number format of the attention's inputs; models run under autocast to it.
        out: Folder of the results, tables and plots.
        only: Methods or models to time, by their names in the tables; by default all.
        size: Sizes to time, as the tables count them: tokens, or pixels a side; by default all.
        max_seconds: Longest time, in seconds, that one run may be expected to take; what takes longer is left out.
        forward_only: Leave out the backward pass, which needs more memory.
        compile: Time everything under torch.compile.
        explain: Tell which implementation runs and why, and measure nothing.
        report: Make the tables and plots from the CSV files that are there, and measure nothing.

    Raises:
        InputError: for an unknown name, or a device that is not there.

    Examples:
        softmaxfree bench
        softmaxfree bench model --only soft_tiny --size 4096 --forward-only
        softmaxfree bench attention --size 3136 50176 --only soft softmax
        softmaxfree bench --device cuda --dtype bfloat16
        softmaxfree bench --explain
    """
    where = find_device(device)
    unknown = [name for name in suites if name not in SUITES]
    if unknown:
        raise InputError(f"there is nothing called {unknown[0]!r} to time; choose from {', '.join(SUITES)}")
    if explain:
        _explain(where, _DTYPES[dtype])
        return
    folder = Path(out)
    _require_free(folder, [results.path_of(folder, suite, where) for suite in suites or SUITES])
    for suite in suites or SUITES:
        path = results.path_of(folder, suite, where)
        rows = results.read(path)
        if not report:
            for row in measure(
                suite,
                where,
                _DTYPES[dtype],
                only=only,
                sizes=size,
                max_seconds=max_seconds,
                forward_only=forward_only,
                compiled=compile,
            ):
                print(
                    f"{results.label(row)}, {row.batch} x {row.size:,}, {row.what}: {row.median_ms:.4g} ms, "
                    f"{row.peak_mib:.4g} MiB",
                    flush=True,
                )
                rows.append(row)
                results.write(path, rows)
            rows = results.read(path)
        if rows:
            plot(rows, path.parent.parent / f"{path.stem}.png", SUITES[suite].size)
    _report(folder)


def _require_free(folder: Path, tables: Sequence[Path]) -> None:
    """Refuse to replace what no benchmark has written."""
    require_free([folder / "README.md"], [], lambda path: path.read_bytes().startswith(_HEADER[:60].encode()))
    require_free(tables, [], results.is_table)
    plots = {folder / f"{table.stem}.png": table for table in tables}
    require_free(plots, [], lambda plot: plots[plot].exists())  # it was made of the table


def _explain(device: torch.device, dtype: torch.dtype) -> None:
    """Prints for the shapes of the benchmark which implementation runs, and why the others do not."""
    lines = []
    for _, size in SUITES["attention"].shapes[:1]:
        q, v = (z.to(device, dtype) for z in SUITES["attention"].inputs(1, size))
        landmarks = q[:, :, :49]
        calls = [("gaussian", "K(q, l) w", (q, landmarks, landmarks)), ("gaussian", "K(l, k) v", (landmarks, q, v))]
        grams = [("newton", f"inverse, {m} landmarks", (torch.empty(1, 1, m, m, device=device),)) for m in (49, 256)]
        for op, what, tensors in calls + grams:
            chosen = dispatch.choose(op, *tensors)
            for name, reasons in dispatch.explain(op, *tensors).items():
                runs = chosen is dispatch.IMPLEMENTATIONS[op][name]
                lines.append([what, name, "runs" if runs else "", "; ".join(reasons)])
    print_table(["of", "implementation", "", "cannot run because"], lines)
    print(f"force one with {' or '.join(dispatch.variable(op) for op in dispatch.IMPLEMENTATIONS)}")


def _report(folder: Path) -> None:
    """Writes README.md with the tables of all CSVs."""
    text = [_HEADER]
    for path in sorted((folder / "results").glob("*.csv")):
        rows = results.read(path)
        about, suite = rows[-1], SUITES[rows[-1].suite]
        text.append(f"## {about.suite.capitalize()} on {about.device}, {about.threads} threads\n")
        text.append(f"torch {about.torch}, timm {about.timm}, softmaxfree {about.softmaxfree}.\n")
        text.append(f"![time and memory over the {suite.size}]({path.stem}.png)\n")
        own = next(iter(suite.contestants))
        for what in results.passes(rows):
            for title, value, relative_to in (
                (f"{what}: ms by {suite.size}", "median_ms", ""),
                (f"{what}: time in units of {own}", "median_ms", own),
                (f"{what}: peak memory, MiB", "peak_mib", ""),
            ):
                heads, lines = results.pivot(rows, what, value, relative_to)
                text.append(f"### {title[0].upper() + title[1:]}\n\n{markdown_table(heads, lines)}\n")
    if not list((folder / "results").glob("*-cuda.csv")):
        text.append("## GPU\n\nNot measured. `softmaxfree bench --device cuda` does it.\n")
    with atomic_write(folder / "README.md") as part:
        part.write_text("\n".join(text), encoding="utf-8")
