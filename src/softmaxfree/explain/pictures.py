"""Explanations as pictures: the image beside its maps, each with its scale, its row sum and its extremes."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from softmaxfree.explain.activation import Activation
from softmaxfree.explain.landmarks import Inverse, LandmarkImportance
from softmaxfree.explain.maps import AttentionMap

__all__ = ["draw_activation", "draw_attention", "draw_inverses", "draw_landmarks", "draw_side_by_side"]

_WIDEST = 4  # panels in a row
_PANEL = 3.4  # inches
_SIDE = 1024  # pixels of the longer side of an image that is shown
_SMALL = 8.5
_FAINT = 0.1  # of a shared scale: what stays below is not seen
_QUERY: dict[str, Any] = {"marker": "o", "ms": 9, "mfc": "none", "clip_on": False}


def draw_attention(
    picture: Image.Image, found: AttentionMap, query: Sequence[int] | None, heads: Sequence[int | str], told: str
) -> Figure:
    """Return the image with its query, and the map of each head; blue is negative, red positive, white 0.

    Args:
        picture: the image as the network sees it.
        found: the map.
        query: `(x, y)` in pixels of the picture; None for the class token or the mean.
        heads: numbers, or "mean".
        told: what the query is called.

    Returns:
        The figure.
    """
    figure, panels = _panels(1 + len(heads), found.size)
    _show_image(panels[0], picture, found.size, query, f"query: {told}")
    sums = found.row_sums
    for panel, head in zip(panels[1:], heads, strict=True):
        weights = found.of_head(head)  # type: ignore[arg-type]
        total = sums.mean() if head == "mean" else sums[int(head)]
        name = "mean of the heads" if head == "mean" else f"head {head}"
        _show_map(figure, panel, found, weights, f"{name}\n{_numbers(weights, total)}", query)
    figure.suptitle(f"{found.layer} ({found.mixer}): what the query attends to", fontsize=11)
    return figure


def draw_side_by_side(rows: Sequence[tuple[Image.Image, dict[str, AttentionMap], Sequence[int] | None, str]]) -> Figure:
    """Return images, one a row, each with the maps of several mixers; those of the Gaussian share a scale.

    What stays far below the largest has its own scale, and says so: on the shared one it would be blank.

    Args:
        rows: image, maps (the mean of the heads is shown), query, and what that is called.

    Returns:
        The figure.
    """
    columns = 1 + len(rows[0][1])
    heights = [found.size[0] / found.size[1] for _, maps, *_ in rows for found in [next(iter(maps.values()))]]
    figure = Figure(figsize=(2.9 * columns, sum(2.2 * ratio + 0.8 for ratio in heights) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for panels, (picture, maps, query, told) in zip(grid, rows, strict=True):
        _show_image(panels[0], picture, next(iter(maps.values())).size, query, f"query: {told}")
        exact = maps["exact Gaussian"].of_head("mean")
        largest = max(float(own.of_head("mean").abs().max()) for name, own in maps.items() if name != "softmax")
        for panel, (name, found) in zip(panels[1:], maps.items(), strict=True):
            weights = found.of_head("mean")
            title = f"{name}\n{_numbers(weights, found.row_sums.mean())}"
            if name.startswith("low rank"):
                title += f"\ndistance to exact {float((weights - exact).norm() / exact.norm()):.2g}"
            own = name == "softmax" or float(weights.abs().max()) < _FAINT * largest
            if own and name != "softmax":
                title += ", own scale"
            _show_map(figure, panel, found, weights, title, query, None if own else largest)
    return figure


def draw_activation(picture: Image.Image, found: Activation, title: str) -> Figure:
    """Return the image beside what raises a score, laid over it.

    Args:
        picture: the image as the network sees it.
        found: the map.
        title: what the score is of.

    Returns:
        The figure.
    """
    size = int(found.pixels.shape[0]), int(found.pixels.shape[1])
    figure, panels = _panels(2, size)
    _show_image(panels[0], picture, size, None, "image")
    rows, columns = found.cells
    what = "logit" if found.box is None else "score"
    told = f"{found.method} at {found.layer}, {rows} x {columns} cells\n{what} {found.score:.3g}"
    _show_image(panels[1], picture.convert("L"), size, None, told)
    values = np.asarray(_smaller(Image.fromarray(found.pixels.cpu().float().numpy())))
    shown = panels[1].imshow(
        values, cmap="inferno", alpha=0.6, vmin=0, vmax=1, extent=(0, size[1], size[0], 0), interpolation="nearest"
    )
    _bar(figure, panels[1], shown, "raises the score (largest = 1)")
    if found.box is not None:
        left, top, right, bottom = found.box
        for panel in panels:
            panel.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="cyan", lw=2)
    figure.suptitle(title, fontsize=11)
    return figure


def draw_landmarks(
    picture: Image.Image,
    found: LandmarkImportance,
    size: tuple[int, int],
    query: Sequence[int] | None = None,
    told: str = "all queries",
) -> Figure:
    """Return the image with its landmarks, as large as what goes through them in all heads.

    Args:
        picture: the image as the network sees it.
        found: the landmarks.
        size: height and width of the image.
        query: `(x, y)` in pixels of the picture, if it is marked.
        told: what the query is called.

    Returns:
        The figure.
    """
    figure, panels = _panels(2, size)
    shares = found.mean.cpu().numpy()
    _show_image(panels[0], picture, size, query, told)
    parts = f"{len(shares)} landmarks\nshare of each, of all heads together"
    _show_image(panels[1], picture.convert("L"), size, None, parts)
    room = (_PANEL * 72 * 0.75) ** 2 / len(shares)  # points squared that one landmark has
    y, x = found.places.cpu().numpy().T
    dots = panels[1].scatter(
        x, y, s=0.9 * room * shares / shares.max(), c=100 * shares, cmap="viridis", vmin=0, edgecolors="white", lw=0.5
    )
    _bar(figure, panels[1], dots, "% of the absolute weight")
    figure.suptitle(f"{found.layer} ({found.mixer}): what goes through each landmark", fontsize=11)
    return figure


def draw_inverses(found: Sequence[Inverse]) -> Figure:
    """Return the spectra of the matrices that the layers invert, and how much of each is missed.

    Args:
        found: one each layer.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11, max(3.6, 1.4 + 0.24 * len(found))), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(found)))
    for colour, layer in zip(colours, found, strict=True):
        values = layer.spectrum.double().clamp(min=1e-12).log10().cpu().numpy()
        places = np.arange(1, values.shape[1] + 1)
        left.plot(places, 10 ** values.mean(0), color=colour, label=layer.layer)
        left.fill_between(places, 10 ** values.min(0), 10 ** values.max(0), color=colour, alpha=0.2, lw=0)
    left.set(xscale="log", yscale="log", xlabel="number of the value, largest first", ylabel="eigen- or singular value")
    left.set_title("spectrum: geometric mean and range of the heads", fontsize=10)
    left.legend(fontsize=7, frameon=False, ncols=1 + len(found) // 10)
    for place, (colour, layer) in enumerate(zip(colours, found, strict=True)):
        values = layer.residual.cpu().numpy()
        right.plot(values, np.full(len(values), place), "o", color=colour, ms=5)
    right.set_yticks(range(len(found)), [layer.layer for layer in found], fontsize=8)
    right.set(xscale="log", xlabel="|A Y A - A| / |A|, a dot each head")
    right.invert_yaxis()
    right.margins(y=0.5 / len(found) + 0.05)
    right.set_title("residual of the inverse Y", fontsize=10)
    figure.suptitle(f"inverses of the landmarks' matrices ({found[0].solver})", fontsize=11)
    return figure


def _panels(count: int, size: tuple[int, int]) -> tuple[Figure, list[Any]]:
    columns = min(count, _WIDEST)
    rows = -(-count // columns)
    ratio = min(max(size[0] / size[1], 0.4), 2.0)
    figure = Figure(figsize=(_PANEL * columns, rows * (_PANEL * 0.75 * ratio + 0.9) + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.axis("off")
    return figure, panels[:count]


def _show_image(
    panel: Any, picture: Image.Image, size: tuple[int, int], query: Sequence[int] | None, title: str
) -> None:
    panel.imshow(np.asarray(_smaller(picture)), cmap="gray", vmin=0, vmax=255, extent=(0, size[1], size[0], 0))
    panel.set_title(title, fontsize=_SMALL)
    _finish(panel, size, query)


def _show_map(
    figure: Figure,
    panel: Any,
    found: AttentionMap,
    weights: Tensor,
    title: str,
    query: Sequence[int] | None,
    largest: float | None = None,
) -> None:
    values = weights.double().cpu().numpy()
    rows, columns = (
        cells * found.stride * own / seen for cells, own, seen in zip(values.shape, found.size, found.seen, strict=True)
    )
    limit = largest or float(np.abs(values).max()) or 1.0
    shown = panel.imshow(
        values, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, columns, rows, 0), interpolation="nearest"
    )
    panel.set_title(title, fontsize=_SMALL)
    _bar(figure, panel, shown, "weight", (min(0.0, float(values.min())), limit))
    _finish(panel, found.size, query)


def _bar(figure: Figure, panel: Any, shown: Any, label: str, used: tuple[float, float] | None = None) -> None:
    beside = panel.inset_axes((1.03, 0, 0.045, 1))
    bar = figure.colorbar(shown, cax=beside)
    if used is not None:
        bar.ax.set_ylim(*used)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)
    bar.formatter.set_powerlimits((-2, 4))  # type: ignore[attr-defined]


def _finish(panel: Any, size: tuple[int, int], query: Sequence[int] | None) -> None:
    panel.set(xlim=(0, size[1]), ylim=(size[0], 0), xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set(visible=True, color="0.6")
    if query is not None:
        x, y = query[0] + 0.5, query[1] + 0.5
        panel.plot(x, y, mec="black", mew=3.5, **_QUERY)
        panel.plot(x, y, mec="#ffe600", mew=1.8, **_QUERY)


def _numbers(weights: Tensor, total: Tensor) -> str:
    return f"row sum {float(total):.4g}\nweights {float(weights.min()):.2g} to {float(weights.max()):.2g}"


def _smaller(picture: Image.Image) -> Image.Image:
    if max(picture.size) <= _SIDE:
        return picture
    width, height = (max(1, round(side * _SIDE / max(picture.size))) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)
