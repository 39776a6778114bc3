"""What `softmaxfree explain` writes: a picture and a JSON of each kind."""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from softmaxfree.atomic import write_json
from softmaxfree.cli.explain_inputs import Subject
from softmaxfree.cli.outputs import require_free
from softmaxfree.errors import InputError
from softmaxfree.explain import (
    AttentionMap,
    class_activation,
    inverses,
    landmark_importance,
    pictures,
    side_by_side,
)
from softmaxfree.explain import attention as attention_of
from softmaxfree.explain.kernels import PHOTOGRAPHS, photograph_maps
from softmaxfree.explain.maps import to_numbers
from softmaxfree.report.figures import save_png

__all__ = ["Outputs", "attention", "cam", "inverse", "landmarks", "mixers", "photographs"]

_SOFTWARE = "softmaxfree explain"  # in each picture and JSON, so that a later run may replace it
_STRONGEST = 10  # tokens of a row that the JSON lists
_OF_HEADS = 16  # that are drawn
_FAINT = 0.01  # of a sum of absolute weights, which is 1 for softmax

_Query = Any


class Outputs:
    """The two files of an explanation, which are written when all is known.

    Args:
        folder: for both.
        image: whose name they get.
        what: is explained.
        inputs: files that are read.
        target: what was asked for by --target, which is then part of the names; None for the usual one.

    Raises:
        InputError: they would replace an input or a file that is not ours.
    """

    def __init__(self, folder: Path, image: Path, what: str, inputs: list[Any], target: str | None = None) -> None:
        self.image, self.what = image, what
        name = what if target is None else f"{what}_{_in_a_name(target)}"
        self.picture, self.numbers = (folder / f"{image.stem}_{name}.{kind}" for kind in ("png", "json"))
        require_free([self.picture, self.numbers], inputs, _is_ours)

    def write(self, draw: Callable[[], Figure], numbers: dict[str, Any], line: str) -> None:
        """Writes both files, and prints a line and their names."""
        told = {"made_by": _SOFTWARE, "what": self.what, "image": str(self.image), **numbers}
        save_png(draw, self.picture, _SOFTWARE)
        write_json(self.numbers, told)
        print(f"{line}\n{self.picture}, {self.numbers}")


def _in_a_name(target: str) -> str:
    """The target as a part of the name of a file, another one for each target."""
    kept = re.sub(r"[^\w.+-]+", "_", target)
    return kept if kept == target else f"{kept}-{zlib.crc32(target.encode()):08x}"


def attention(
    outputs: Outputs,
    subject: Subject,
    asked: _Query,
    query: _Query,
    stage: int | None,
    block: int,
    head: Any,
) -> None:
    """Write what a query attends to.

    Args:
        outputs: the files.
        subject: network and picture.
        asked: the query in pixels of the picture.
        query: the same in pixels of the file.
        stage: see `attention`.
        block: see `attention`.
        head: number, "mean" or "all".
    """
    found = attention_of(subject.model, subject.x, asked, stage=stage, block=block)
    found.of_head(head)  # refuses a head that is not there
    count = len(found.weights)
    heads = ["mean", *range(min(count, _OF_HEADS))] if head == "all" and count > 1 else [0 if head == "all" else head]
    sums = to_numbers(found.row_sums)
    numbers = {"query": _told(query), **_of_map(found)}
    numbers["heads"] = [{"head": i, **_of_weights(found, i)} for i in range(count)]
    numbers["mean"] = _of_weights(found, "mean")
    spread = f"{min(sums):.4g}" if count == 1 else f"{min(sums):.4g} to {max(sums):.4g} over {count} heads"
    total = float(found.weights.abs().flatten(1).sum(1).max())
    faint = "; the attention of this query adds next to nothing in this layer" if total < _FAINT else ""
    outputs.write(
        lambda: pictures.draw_attention(
            subject.picture, found, None if asked == "cls" else asked, heads, _name(query, found)
        ),
        numbers,
        f"{found.layer} ({found.mixer}): row sum {spread}, weights {float(found.weights.min()):.3g} to "
        f"{float(found.weights.max()):.3g}{faint}",
    )


def mixers(outputs: Outputs, subject: Subject, asked: _Query, query: _Query, stage: int | None, block: int) -> None:
    """Write one query under softmax, the exact Gaussian kernel and its low rank; arguments as for `attention`."""
    maps = side_by_side(subject.model, subject.x, asked, stage=stage, block=block)
    shown = None if asked == "cls" else asked
    first = next(iter(maps.values()))
    numbers = {"query": _told(query), **_of_map(first), "mixers": _of_mixers(maps)}
    del numbers["mixer"]
    outputs.write(
        lambda: pictures.draw_side_by_side([(subject.picture, maps, shown, _name(query, first))]),
        numbers,
        f"{first.layer}: {_line(maps)}",
    )


def photographs(folder: Path) -> None:
    """Write the figure of one query under three mixers on photographs that packages bring.

    Args:
        folder: for the files.
    """
    outputs = Outputs(folder, Path("photographs"), "mixers", [])
    rows, numbers, lines = [], [], []
    for photograph in PHOTOGRAPHS:
        picture, maps = photograph_maps(photograph)
        rows.append((Image.fromarray(picture), maps, photograph.query, f"pixel {photograph.query}"))
        numbers.append({"photograph": photograph.name, "query": _told(photograph.query), "mixers": _of_mixers(maps)})
        lines.append(f"{photograph.name}: {_line(maps)}")
    tokens = "queries and keys: mean colour and place of patches of 8x8 pixels; no network, nothing is trained"
    outputs.write(
        lambda: pictures.draw_side_by_side(rows), {"tokens": tokens, "photographs": numbers}, "\n".join(lines)
    )


def landmarks(outputs: Outputs, subject: Subject, asked: _Query, query: _Query, stage: int | None, block: int) -> None:
    """Write how much goes through each landmark; arguments as for `attention`, None for all queries."""
    found = landmark_importance(subject.model, subject.x, asked, stage=stage, block=block)
    places = [subject.place_in_file(x, y) for y, x in found.places.tolist()]
    numbers = {
        "query": None if asked is None else _told(query),
        "layer": found.layer,
        "mixer": found.mixer,
        "places": [{"x": x, "y": y} for x, y in places],
        "heads": [
            {"head": i, "total": total, "shares": to_numbers(shares)}
            for i, (total, shares) in enumerate(zip(to_numbers(found.total), found.shares, strict=True))
        ],
    }
    numbers["all_heads"] = to_numbers(found.mean)
    size = int(subject.x.shape[-2]), int(subject.x.shape[-1])
    best = places[int(found.mean.argmax())]
    shown = None if asked in (None, "cls") else asked
    told = "all queries" if asked is None else f"query: pixel {query[0]}, {query[1]} of the file"
    faint = (
        "; next to nothing goes through them in this layer" if float(found.total.max()) / found.queries < _FAINT else ""
    )
    outputs.write(
        lambda: pictures.draw_landmarks(subject.picture, found, size, shown, told),
        numbers,
        f"{found.layer} ({found.mixer}), {told}: {len(found.mean)} landmarks, the largest share "
        f"{100 * float(found.mean.max()):.1f} % at x {best[0]:.0f}, y {best[1]:.0f} of the file{faint}",
    )


def inverse(outputs: Outputs, subject: Subject) -> None:
    """Write spectra and residuals of all layers' inverses."""
    found = inverses(subject.model, subject.x)
    layers = [
        {
            "layer": layer.layer,
            "mixer": layer.mixer,
            "solver": layer.solver,
            "heads": [
                {"head": i, "residual": missed, "spectrum": to_numbers(values)}
                for i, (missed, values) in enumerate(zip(to_numbers(layer.residual), layer.spectrum, strict=True))
            ],
        }
        for layer in found
    ]
    worst = max(found, key=lambda layer: float(layer.residual.max()))
    outputs.write(
        lambda: pictures.draw_inverses(found),
        {"layers": layers},
        f"{len(found)} inverses, the largest residual {float(worst.residual.max()):.3g} in {worst.layer}",
    )


def cam(outputs: Outputs, subject: Subject, target: int | None, stage: int | None, method: Any) -> None:
    """Write what raises the score of a class, a detection or a segment.

    Args:
        outputs: the files.
        subject: network and picture.
        target: see `class_activation`.
        stage: see `class_activation`; None is the last one.
        method: see `class_activation`.
    """
    try:
        found = class_activation(subject.model, subject.x, target, stage=-1 if stage is None else stage, method=method)
    except InputError as error:
        if str(error).startswith("target"):
            raise InputError(f"--{error}") from error
        raise
    name = subject.class_names[found.label]
    of = {"classification": "class", "segmentation": "segment", "detection": f"detection {found.target},"}[subject.kind]
    numbers: dict[str, Any] = {
        "of": subject.kind,
        "target": found.target,
        "class": name,
        "score": found.score,
        "layer": found.layer,
        "method": found.method,
        "cells": list(found.cells),
        "box": None if found.box is None else [round(side, 2) for side in found.box],
        "mean": float(found.pixels.mean()),
        "share_above_half": float((found.pixels > 0.5).double().mean()),
    }
    share = f"{100 * numbers['share_above_half']:.1f} % of the pixels above half"
    if not found.pixels.any():
        share = f"which nothing at {found.layer} raises: an earlier --stage may tell more"
    what = "score" if found.box is not None else "logit"
    outputs.write(
        lambda: pictures.draw_activation(subject.picture, found, f"what raises the score of {of} {name}"),
        numbers,
        f"{of} {name}: {what} {found.score:.4g}, {share}, in {found.cells[0]} x {found.cells[1]} cells",
    )


def _name(query: _Query, found: AttentionMap) -> str:
    if query != "cls":
        return f"pixel {tuple(query)}"
    return "mean of all" if found.token is None else "class token"


def _told(query: _Query) -> Any:
    return query if isinstance(query, str) else list(query)


def _of_map(found: AttentionMap) -> dict[str, Any]:
    return {
        "layer": found.layer,
        "mixer": found.mixer,
        "token": found.token,
        "grid": list(found.weights.shape[1:]),
        "pixels_of_a_token": found.stride,
    }


def _of_weights(found: AttentionMap, head: Any) -> dict[str, Any]:
    weights = found.of_head(head)
    total = found.row_sums.mean() if head == "mean" else found.row_sums[head]
    prefix = found.prefix.mean(0) if head == "mean" else found.prefix[head]
    flat = weights.flatten()
    order = flat.abs().argsort(descending=True, stable=True)[:_STRONGEST].tolist()
    columns = weights.shape[1]
    return {
        "row_sum": to_numbers(total)[0],
        "smallest": to_numbers(flat.min())[0],
        "largest": to_numbers(flat.max())[0],
        "negative_sum": to_numbers(flat.clamp(max=0).sum())[0],
        "prefix": to_numbers(prefix),
        "strongest": [{"row": i // columns, "column": i % columns, "weight": to_numbers(flat[i])[0]} for i in order],
    }


def _of_mixers(maps: dict[str, AttentionMap]) -> dict[str, Any]:
    return {
        name: _of_weights(found, "mean")
        | ({"distance_to_exact": float(f"{_distance(maps, found):.4g}")} if name.startswith("low rank") else {})
        for name, found in maps.items()
    }


def _distance(maps: dict[str, AttentionMap], found: AttentionMap) -> float:
    exact: Tensor = maps["exact Gaussian"].of_head("mean")
    return float((found.of_head("mean") - exact).norm() / exact.norm())


def _line(maps: dict[str, AttentionMap]) -> str:
    return "; ".join(
        f"{name}: distance {_distance(maps, found):.2g} to the exact Gaussian"
        for name, found in maps.items()
        if name.startswith("low rank")
    )


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8")).get("made_by") == _SOFTWARE
        with Image.open(path) as picture:
            return picture.info.get("Software") == _SOFTWARE
    except (OSError, ValueError, SyntaxError, AttributeError):  # whatever another kind of file is to a decoder
        return False
