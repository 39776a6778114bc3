"""`softmaxfree explain` of bags: what the network looks at in slides, over their patches."""

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from softmaxfree.arguments import require
from softmaxfree.cli.explain_inputs import find_target
from softmaxfree.cli.explain_outputs import Outputs
from softmaxfree.cli.inputs import skip_or_fail
from softmaxfree.cli.outputs import require_free
from softmaxfree.cli.predict_bags import bag_row, find_bags, is_table, load_bags, open_slide, output_of, write_bags
from softmaxfree.errors import InputError
from softmaxfree.images import find_images, read_image

__all__ = ["KINDS", "explain_slides"]

KINDS = ("attention", "contributions")
"""What can be shown of a bag."""

_TABLE = "slides.csv"


class _Files(NamedTuple):
    """A slide's files: of features, coordinates and thumbnail, which may be None, and those that are written."""

    name: str
    features: Path
    coords: Path | None
    thumbnail: Path | None
    outputs: Outputs
    scores: Path
    top: Path


class _Opened(NamedTuple):
    """A slide as it was read: a batch of one bag and the output of the network, places `(N, 2)` and their step, how it
    is drawn, and attributes.
    """

    batch: Any
    output: Tensor
    places: Tensor
    step: float
    drawn: dict[str, Any]
    attributes: dict[str, Any]


def explain_slides(
    given: Sequence[Path],
    checkpoint: str,
    what: str,
    out: Path,
    *,
    coords: Path | None,
    thumbnail: Path | None,
    layer: int,
    head: int | Literal["mean", "all"],
    target: str | None,
    scaling: str,
    top: int,
    max_pixels: int,
    device: torch.device,
) -> None:
    """Write of each slide a heat map, its scores as CLAM's HDF5, its numbers, and the patches with the highest scores.

    Of several slides, or a folder of them, those that cannot be read are named and left out, and a table tells what is
    predicted of the others.

    Args:
        given: features of slides, and folders of them.
        checkpoint: of a task of bags.
        what: "attention" of the class token, or "contributions" to a logit.
        out: folder for the files.
        coords: folder of coordinates that are not beside the features.
        thumbnail: picture of the whole slide, or a folder of pictures with the names of the slides; None draws on a
            blank canvas.
        layer: of the attention.
        head: of the attention: a number or "mean".
        target: class whose logit is taken apart, by name or number; None takes the likeliest of each slide.
        scaling: "rank" or "raw".
        top: how many patches are listed.
        max_pixels: of a thumbnail.
        device: of the network.

    Raises:
        InputError: the slide has no coordinates, or an argument is out of range.
        OSError: a file cannot be written.
    """
    require(head != "all", "--head", head, "a number or mean, for bags")
    slides = _files(given, checkpoint, what, out, coords, thumbnail, target)
    task, record = load_bags(checkpoint)
    task.to(device)
    table = None if _is_one(given) else out / _TABLE
    if table is not None:
        require_free([table], [files.features for files in slides], is_table)
    done: list[dict[str, Any]] = []
    for files in slides:
        opened = None
        with _left_out(files, table is not None):
            opened = _open(files, task, record, max_pixels)
        if opened is not None:
            row = bag_row(files.name, files.features, len(opened.places), opened.output, task, _names(record, opened))
            scores, numbers, line = _scores(files, opened, row, task, checkpoint, what, layer, head, target)
            with _left_out(files, table is not None):
                _write(files, opened, scores, numbers, line, scaling, top)
                done.append(row)
    if not done:
        raise InputError(f"none of the {len(slides)} slides can be explained")
    if skipped := len(slides) - len(done):
        print(f"{skipped} of {len(slides)} slides skipped", file=sys.stderr)
    if table is not None:
        write_bags(done, "csv", table)


@contextmanager
def _left_out(files: _Files, goes_on: bool) -> Iterator[None]:
    """Names a slide with which something is wrong; where there are no others it stops the command."""
    try:
        yield
    except (InputError, OSError) as error:
        of_slide = isinstance(error, InputError) or error.errno == errno.ENAMETOOLONG  # not so a full disk
        if not goes_on or not of_slide:
            raise
        skip_or_fail(files.features, error, "skip", "slide")


def _is_one(given: Sequence[Path]) -> bool:
    return len(given) == 1 and not given[0].is_dir()


def _files(
    given: Sequence[Path],
    checkpoint: str,
    what: str,
    out: Path,
    coords: Path | None,
    thumbnail: Path | None,
    target: str | None,
) -> list[_Files]:
    """The files of each slide, none of which would replace one that is not ours."""
    from softmaxfree.mil.data.slides import slide_id

    pictures: dict[str, Path] = {}
    folder = thumbnail is not None and thumbnail.is_dir()
    if thumbnail is not None and folder:
        for picture in map(Path, find_images(thumbnail).files):
            first = pictures.setdefault(name := slide_id(picture.stem), picture)
            if first != picture:
                raise InputError(f"--thumbnail: two pictures of {name}: {first} and {picture}")
    elif thumbnail is not None and not _is_one(given):
        raise InputError(f"--thumbnail must be a folder for several slides, with pictures of their names: {thumbnail}")
    if among := [path for path in given if path.is_dir() and path.resolve() == out.resolve()]:
        raise InputError(f"--out: {out} is a folder of slides, {among[0]}, among which the maps would be slides too")
    slides, blank = [], []
    for name, path, beside in find_bags(given, coords):
        below = pictures.get(name) if folder else thumbnail
        if folder and below is None:
            blank.append(name)
        read = [path, checkpoint, *(file for file in (beside, below) if file is not None)]
        outputs = Outputs(out, Path(f"{name}.h5"), what, read, target)
        scores, top = (outputs.picture.with_name(f"{outputs.picture.stem}{end}") for end in (".h5", "_top.csv"))
        require_free([scores, top], [path], _is_ours)
        slides.append(_Files(name, path, beside, below, outputs, scores, top))
    if blank and len(blank) == len(slides):
        raise InputError(f"--thumbnail: {thumbnail} holds no picture of a name such as {blank[0]}")
    if blank:
        print(f"{len(blank)} of {len(slides)} slides have no thumbnail, such as {blank[0]}", file=sys.stderr)
    return slides


def _open(files: _Files, task: Any, record: Any, max_pixels: int) -> _Opened:
    slide, batch = open_slide(files.name, files.features, files.coords, task, record)
    if slide.coords is None:
        raise InputError(
            f"slide {files.name}: {files.features} has no coordinates, which a map needs; --coords is a folder of them"
        )
    if batch.coords is None:  # which the network does without
        from softmaxfree.mil.data.slides import read_coords

        found, step = read_coords(slide, record.data_config.get("step"))
        places = torch.from_numpy(found)
    else:
        places, step = batch.coords[0].cpu(), float(batch.step[0])
    attributes = slide.coords.attributes
    output = output_of(files.name, files.features, task, batch)
    return _Opened(batch, output, places, step, _drawn(attributes, step, files.thumbnail, max_pixels), attributes)


def _names(record: Any, opened: _Opened) -> list[str]:
    return list(record.class_names) or [str(i) for i in range(opened.output.shape[1])]


def _scores(
    files: _Files,
    opened: _Opened,
    row: dict[str, Any],
    task: Any,
    checkpoint: str,
    what: str,
    layer: int,
    head: Any,
    target: str | None,
) -> tuple[Tensor, dict[str, Any], str]:
    """Returns the score of each patch, what the JSON tells and what is printed; only arguments can be wrong here."""
    from softmaxfree.mil import maps
    from softmaxfree.mil.pooling import AbstractPooling

    batch = opened.batch
    logits, probabilities, names = opened.output[0], row["probabilities"], list(row["probabilities"])
    numbers: dict[str, Any] = {
        "image": str(files.features),
        "slide": files.name,
        "patches": len(opened.places),
        "checkpoint": checkpoint,
        "predicted": row["predicted"],
        "logits": logits.tolist(),
        "probabilities": probabilities,
    }
    given: dict[str, Any] = {} if batch.coords is None else {"step": opened.step}
    token = not isinstance(task.model, AbstractPooling)
    if what == "attention":
        whose = "attention of the class token" if token else "weights of the pooling"
        scores = maps.attention(task.model, batch.features, batch.coords, layer=layer, head=head, **given).cpu()
        line = f"{whose}: sum over {len(scores):,} patch{'es' * (len(scores) != 1)} {float(scores.sum()):.4g}"
    else:
        asked = find_target(target, names)
        number = names.index(row["predicted"]) if asked is None else asked
        require(0 <= number < len(names), "--target", number, f"0 to {len(names) - 1}")
        parts = maps.contributions(task.model, batch.features, batch.coords, **given)
        scores = parts.patches[number].cpu()
        rest = {"class_token": float(parts.class_token[number]), "base": float(parts.base[number])}
        what_of = f"the hazard of {names[number]}" if task.target == "survival" else names[number]
        numbers |= {"class": names[number], "to": what_of, "index": number, "of_patches": float(scores.sum()), **rest}
        parts_told = rest if token else {"base": rest["base"]}
        told = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in parts_told.items())
        line = f"logit of {names[number]} {float(logits[number]):.4g}: patches {float(scores.sum()):.4g}, {told}"
    return scores, numbers, f"{files.name}: {row['predicted']} {probabilities[row['predicted']]:.1%}\n{line}"


def _write(
    files: _Files, opened: _Opened, scores: Tensor, numbers: dict[str, Any], line: str, scaling: str, top: int
) -> None:
    from softmaxfree.mil import heatmaps, maps

    what, places = files.outputs.what, opened.places
    first = maps.top_patches(scores, top, places)
    said, whose = numbers["predicted"], f" to {numbers['to']}" if what == "contributions" else ""
    title = f"{files.name}: {what}{whose} (predicted: {said}, {numbers['probabilities'][said]:.0%})"
    files.outputs.write(
        lambda: heatmaps.draw_heatmap(scores, places, **opened.drawn, scaling=scaling, title=title),  # type: ignore[arg-type]
        {**numbers, "top": heatmaps.top_rows(first)},
        line,
    )
    about = {"what": what, "checkpoint": numbers["checkpoint"], "class": numbers.get("class", "")}
    heatmaps.write_scores(files.scores, scores, places, opened.attributes, about)
    heatmaps.write_top_patches(files.top, first)
    print(f"{files.scores}, {files.top}")


def _drawn(attributes: dict[str, Any], step: float, thumbnail: Path | None, max_pixels: int) -> dict[str, Any]:
    """Size of a patch, and of the slide where the file tells it, in pixels at level 0; and the picture below."""
    from softmaxfree.mil.data.lattice import patch_size_of, slide_size_of

    shown: dict[str, Any] = {"patch_size": patch_size_of(attributes) or step, "size": slide_size_of(attributes)}
    if thumbnail is None:
        return shown
    if shown["size"] is None:
        raise InputError(
            "--thumbnail: the coordinates do not tell the size of the slide; TRIDENT's and those of CLAM's folder "
            "`patches`, given by --coords, do"
        )
    try:
        return {**shown, "thumbnail": read_image(thumbnail, "RGB", max_pixels)}
    except (InputError, OSError) as error:
        raise InputError(f"--thumbnail: {thumbnail} cannot be read: {error}") from error


def _is_ours(path: Path) -> bool:
    if path.suffix == ".csv":
        return path.read_bytes().startswith(b"rank,patch,score")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "attention_scores" in file
    except OSError:
        return False
