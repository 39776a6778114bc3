"""Scores of patches as pictures, and as the files that other tools read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from softmaxfree.arguments import require, require_number
from softmaxfree.atomic import atomic_write, write_csv
from softmaxfree.errors import InputError
from softmaxfree.mil.maps import TopPatch
from softmaxfree.printing import printable

__all__ = [
    "draw_heatmap",
    "rank_scaled",
    "rasterised",
    "top_rows",
    "write_heatmap",
    "write_scores",
    "write_top_patches",
]

_SIDE = 1600  # pixels of the longer side of a picture
_INCHES = 9.0
_VEIL = 0.4  # opacity over a thumbnail
_SQUEEZED = 0.02  # by so much of a side a thumbnail may have another shape than the slide: sizes of levels are rounded


def rank_scaled(scores: Tensor) -> Tensor:
    """Returns ranks over their number, `(N,)` float64; equal scores share the mean of their ranks.

    They are in (0, 1]. Where some scores are negative, magnitudes are ranked and signs kept, which is in [-1, 1]. A few
    patches with far higher scores than the others leave a map of raw scores in one colour.
    """
    scores = scores.double()
    signed = bool((scores < 0).any())
    _, places, counts = (scores.abs() if signed else scores).unique(return_inverse=True, return_counts=True)
    counts = counts.double()
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[places] / len(scores)
    return ranks * scores.sign() if signed else ranks


def rasterised(
    scores: Tensor, coords: Tensor, patch_size: float, size: tuple[float, float], shape: tuple[int, int]
) -> np.ndarray:
    """Paints each patch with its score.

    Args:
        scores: `(N,)`.
        coords: `(N, 2)`, pixels `(x, y)` of the top left corners, from that of the picture.
        patch_size: side of a patch, in the same pixels.
        size: width and height of what is shown, in the same pixels.
        shape: rows and columns of the result.

    Returns:
        `(rows, columns)` float64: the mean of the patches that cover a pixel, NaN where none does.
    """
    scale = torch.tensor([shape[1] / size[0], shape[0] / size[1]], dtype=torch.float64)
    limit = torch.tensor([shape[1], shape[0]])
    begin = (coords.double() * scale).round().long()
    end = torch.maximum(((coords.double() + patch_size) * scale).round().long(), begin + 1)
    begin, end = (torch.minimum(edge.clamp(min=0), limit) for edge in (begin, end))
    sums, counts = (torch.zeros(shape[0] + 1, shape[1] + 1, dtype=torch.float64) for _ in range(2))
    for sign, x, y in ((1, begin, begin), (-1, end, begin), (-1, begin, end), (1, end, end)):
        corner = (y[:, 1], x[:, 0])
        sums.index_put_(corner, sign * scores.double(), accumulate=True)
        counts.index_put_(corner, torch.full((len(scores),), float(sign), dtype=torch.float64), accumulate=True)
    # what was added at the corners of a rectangle fills it once it is summed along both axes
    sums, counts = (table.cumsum(0).cumsum(1)[:-1, :-1] for table in (sums, counts))
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan).numpy()


def draw_heatmap(
    scores: Tensor,
    coords: Tensor,
    patch_size: float,
    *,
    thumbnail: Image.Image | None = None,
    size: tuple[float, float] | None = None,
    scaling: Literal["rank", "raw"] = "rank",
    title: str = "",
) -> Figure:
    """Draws scores where the patches lie, over a picture of the slide or on a blank canvas, with a colour bar.

    Args:
        scores: `(N,)`.
        coords: `(N, 2)`, level-0 pixels `(x, y)` of the top left corners.
        patch_size: side of a patch, level-0 pixels.
        thumbnail: of the whole slide, which is drawn in grey; None for a blank canvas.
        size: width and height of the slide, level-0 pixels; None for what the patches cover, without a thumbnail.
        scaling: "rank": see `rank_scaled`; "raw": as they are. Where some are negative, 0 is in the middle.
        title: of the picture.

    Returns:
        The figure.

    Raises:
        InputError: for an argument out of range, coordinates outside the slide, or a thumbnail of another shape.
    """
    scores, coords = _checked(scores, coords)
    require_number("patch_size", patch_size, 0)
    require(patch_size > 0, "patch_size", patch_size, "level-0 pixels, above 0")
    require(scaling in ("rank", "raw"), "scaling", scaling, "'rank' or 'raw'")
    require(thumbnail is None or size is not None, "size", size, "width and height of the slide, with a thumbnail")
    if size is None:
        first, last = coords.amin(0), coords.amax(0) + patch_size
        coords, size = coords - first, tuple((last - first).tolist())
    inside = bool((coords >= 0).all()) and bool((coords < torch.tensor(size)).all())
    if not inside:
        corners = f"{coords.amin(0).tolist()} to {coords.amax(0).tolist()}"
        raise InputError(f"coords must lie in the slide of {size[0]:g} x {size[1]:g} pixels, got {corners}")
    shape = _picture_shape(size)
    shown = rank_scaled(scores) if scaling == "rank" else scores
    values = rasterised(shown, coords, patch_size, size, shape)
    height = _INCHES * shape[0] / shape[1]
    figure = Figure(figsize=(_INCHES + 1.2, max(height, 1.5) + 0.5), layout="constrained")
    panel = figure.subplots()
    extent = (0, size[0], size[1], 0)
    if thumbnail is not None:
        _require_shape(thumbnail, size)
        # in grey: the colours of a stain would mix with those of the scores
        picture = thumbnail.convert("L").convert("RGB").resize((shape[1], shape[0]), Image.Resampling.BOX)
        panel.imshow(np.asarray(picture), extent=extent)
    signed = bool((scores < 0).any())
    high = 1.0 if scaling == "rank" else float(scores.abs().max()) or 1.0
    opacity = 1.0 if thumbnail is None else _VEIL
    low = -high if signed else 0.0
    colours = "coolwarm" if signed else "viridis"  # blue is below 0, not little
    drawn = panel.imshow(
        values, cmap=colours, vmin=low, vmax=high, alpha=opacity, extent=extent, interpolation="nearest"
    )
    panel.set(xticks=[], yticks=[], xlim=(0, size[0]), ylim=(size[1], 0))
    if title:
        panel.set_title(printable(title), fontsize=10, parse_math=False)
    panel.spines[:].set(visible=True, color="0.8")
    label = "score"
    if scaling == "rank":
        label = "rank of the magnitude, with its sign" if signed else "share of patches with a score up to this one"
    figure.colorbar(drawn, ax=panel, label=label, fraction=0.03, pad=0.01, aspect=40)
    return figure


def write_heatmap(path: str | Path, scores: Tensor, coords: Tensor, patch_size: float, **drawing: Any) -> None:
    """Writes a heat map as PNG.

    Args:
        path: the file.
        scores: as for `draw_heatmap`.
        coords: as for `draw_heatmap`.
        patch_size: as for `draw_heatmap`.
        **drawing: further arguments of `draw_heatmap`.

    Raises:
        InputError: see `draw_heatmap`.
        OSError: the file cannot be written.
    """
    figure = draw_heatmap(scores, coords, patch_size, **drawing)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=150)


def write_scores(
    path: str | Path,
    scores: Tensor,
    coords: Tensor,
    attributes: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes raw scores as CLAM does: `attention_scores (N, 1)` float32 and `coords (N, 2)` int64 in an h5 file.

    Args:
        path: the file.
        scores: `(N,)`.
        coords: `(N, 2)`, level-0 pixels `(x, y)`.
        attributes: of TRIDENT's `coords`, such as `patch_size_level0`, which are kept there, so that its tools place
            the patches; None for none.
        about: attributes of the scores, such as whose they are; None for none.

    Raises:
        InputError: shapes do not fit, or h5py is missing.
        OSError: the file cannot be written.
    """
    scores, coords = _checked(scores, coords)
    try:
        import h5py
    except ImportError as error:
        raise InputError("h5 files need h5py: pip install 'softmaxfree[mil]'") from error
    with atomic_write(path) as part, h5py.File(part, "w") as file:
        file.create_dataset("attention_scores", data=scores.float()[:, None].numpy()).attrs.update(about or {})
        places = file.create_dataset("coords", data=coords.round().long().numpy())
        places.attrs.update(attributes or {})


def write_top_patches(path: str | Path, patches: Sequence[TopPatch]) -> None:
    """Writes patches as CSV with columns `rank` from 1, `patch` (number from 0), `score`, and `x`, `y` where known.

    Args:
        path: the file.
        patches: see `softmaxfree.mil.maps.top_patches`.

    Raises:
        OSError: the file cannot be written.
    """
    digits = {"score": ".6g", "x": ".15g", "y": ".15g"}
    rows = ({key: format(value, digits.get(key, "")) for key, value in row.items()} for row in top_rows(patches))
    write_csv(path, list(rows))


def top_rows(patches: Sequence[TopPatch]) -> list[dict[str, Any]]:
    """Returns patches as rows of numbers, with the keys of `write_top_patches`."""
    places = [{} if patch.place is None else dict(zip("xy", patch.place, strict=True)) for patch in patches]
    of_patches = enumerate(zip(patches, places, strict=True), 1)
    return [{"rank": rank, "patch": patch.number, "score": patch.score, **place} for rank, (patch, place) in of_patches]


def _checked(scores: Tensor, coords: Tensor | None) -> tuple[Tensor, Tensor]:
    if coords is None:
        raise InputError("coords must be given for a map: without them nothing tells where patches lie")
    if scores.ndim != 1 or not len(scores) or coords.shape != (len(scores), 2):
        shapes = f"{tuple(scores.shape)} and {tuple(coords.shape)}"
        raise InputError(f"scores and coords must be (N,) and (N, 2) with a patch or more, got {shapes}")
    scores, coords = scores.detach().cpu(), coords.detach().cpu().double()
    require(bool(scores.isfinite().all()), "scores", "NaN or infinity", "finite numbers")
    require(bool(coords.isfinite().all()), "coords", "NaN or infinity", "finite numbers")
    return scores, coords


def _picture_shape(size: tuple[float, float]) -> tuple[int, int]:
    scale = _SIDE / max(size)
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _require_shape(thumbnail: Image.Image, size: tuple[float, float]) -> None:
    """Refuse a picture that is squeezed beside the slide: it is of another one, or not of the whole."""
    width, height = thumbnail.size
    scale = max(width / size[0], height / size[1])
    if any(scale * own - side > max(1.5, _SQUEEZED * side) for own, side in zip(size, (width, height), strict=True)):
        raise InputError(
            f"thumbnail must show the whole slide of {size[0]:g} x {size[1]:g} pixels, so of its shape; got "
            f"{width} x {height} pixels"
        )
