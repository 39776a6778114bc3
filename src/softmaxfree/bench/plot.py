"""Log-log plots of time and memory over the size, with the fitted slope of each curve."""

from collections.abc import Sequence
from pathlib import Path

from softmaxfree.atomic import atomic_write
from softmaxfree.bench.results import label, passes, slope
from softmaxfree.bench.run import Row

_VALUES = {"median_ms": "time, ms (20th to 80th percentile)", "peak_mib": "peak memory, MiB"}


def plot(rows: Sequence[Row], path: Path, size_name: str) -> None:
    """Draws one suite: a panel for each pass and quantity, a curve for each contestant, batch 1.

    Args:
        rows: measurements of one suite on one device.
        path: the PNG to write.
        size_name: what the size counts.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 10), layout="constrained")
    panels = figure.subplots(2, len(passes(rows)), squeeze=False)
    names = list(dict.fromkeys(label(row) for row in rows))
    colours = [*colormaps["tab10"].colors, *colormaps["Dark2"].colors]  # type: ignore[attr-defined]
    for line, value in zip(panels, _VALUES, strict=True):
        for axes, what in zip(line, passes(rows), strict=True):
            for i, name in enumerate(names):
                look = {"color": colours[i % len(colours)], "marker": "os^Dv"[i % 5]}
                curve = [r for r in rows if label(r) == name and r.what == what and r.batch == 1]
                if not curve:
                    continue
                power = slope(curve, value)
                text = name if power is None else f"{name}: {power:.2f}"
                sizes = [row.size for row in curve]
                axes.plot(sizes, [getattr(r, value) for r in curve], markersize=4, label=text, **look)
                if value == "median_ms":
                    low, high = [r.p20_ms for r in curve], [r.p80_ms for r in curve]
                    axes.fill_between(sizes, low, high, color=look["color"], alpha=0.2)
            axes.set(xscale="log", yscale="log", title=what, xlabel=size_name, ylabel=_VALUES[value])
            axes.grid(which="both", alpha=0.2)
            axes.legend(
                fontsize="small",
                title="slope at the\nthree largest sizes",
                title_fontsize="small",
                loc="upper left",
                bbox_to_anchor=(1, 1),
                frameon=False,
            )
    figure.suptitle(f"{rows[0].device}, {rows[0].threads} threads, torch {rows[0].torch}, batch 1")
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110)
