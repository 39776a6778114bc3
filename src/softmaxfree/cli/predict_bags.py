"""`softmaxfree predict` of bags: the probability of each class, a line a slide."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from softmaxfree.cli.inputs import skip_or_fail
from softmaxfree.cli.table import write_results
from softmaxfree.errors import InputError

__all__ = ["bag_row", "find_bags", "is_table", "load_bags", "open_slide", "output_of", "predict_bags", "write_bags"]

_HEAD = ("slide_id", "file", "patches", "predicted")


def find_bags(files: Sequence[Path], coords: Path | None) -> list[Any]:
    """Find the slides that a command is given.

    Args:
        files: files of features, and folders that are searched for them.
        coords: folder of coordinates that are not beside the features.

    Returns:
        Name, file and file of coordinates or None, of each slide.

    Raises:
        FileNotFoundError: there is no such file or folder.
        InputError: a folder holds no features, or a slide is there twice.
    """
    from softmaxfree.mil.data.slides import find_files, slide_id

    found: dict[str, Path] = {}
    for path in map(Path, files):
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        own = find_files(path, "features") if path.is_dir() else {slide_id(path.name): path}
        for name, file in own.items():
            if found.setdefault(name, file) != file:
                raise InputError(f"slide {name} is there twice: {found[name]} and {file}")
    beside = find_files(coords, "--coords") if coords is not None else {}
    return [(name, path, beside.get(name)) for name, path in found.items()]


def load_bags(checkpoint: str) -> tuple[Any, Any]:
    """Build the task of bags of a checkpoint, in evaluation mode; return it and what the checkpoint says."""
    import softmaxfree.mil.tasks  # noqa: F401  registers them
    from softmaxfree.tasks.loading import load_task

    return load_task(checkpoint)


def open_slide(name: str, path: Path, coords: Path | None, task: Any, record: Any) -> Any:
    """Read the bag of a slide for a network.

    Args:
        name: of the slide.
        path: of its features.
        coords: file of its coordinates; None where they are beside the features, or not there.
        task: that takes it.
        record: of the checkpoint.

    Returns:
        The slide and a batch of one bag, on the device of the task.

    Raises:
        InputError: it cannot be read, its features are of another width than those of the training, or it has no
            coordinates and the network was trained with them.
    """
    from softmaxfree.mil.data.bag import collate
    from softmaxfree.mil.data.slides import SlideBags, look_at

    (slide,) = look_at([name], {name: path}, {} if coords is None else {name: coords}, {}, bar=False)
    width, wanted = slide.features.shape[1], task.hparams["in_dim"]
    if width != wanted:
        raise InputError(f"slide {name}: {path} has features of {width} numbers, and the weights are for {wanted}")
    trained = record.data_arguments.get("use_coords", "auto")  # older weights do not tell what "auto" was
    if slide.coords is None and trained is True and task.takes_coords:
        raise InputError(
            f"slide {name}: {path} has no coordinates, with which the network was trained; --coords is a folder of them"
        )
    used = trained is not False and slide.coords is not None
    bags = SlideBags([slide], [torch.tensor(0)], record.data_config.get("step"), with_coords=used)
    return slide, task.transfer_batch_to_device(collate([bags[0]]), task.device, 0)


def output_of(name: str, path: Path, task: Any, batch: Any) -> torch.Tensor:
    """Return what a network gives for a slide.

    Args:
        name: of the slide.
        path: of its features.
        task: with its weights.
        batch: one bag, as `open_slide` returns it.

    Returns:
        `(1, classes)`, on the CPU.

    Raises:
        InputError: the network cannot take it, or the result is not finite.
    """
    try:
        with torch.inference_mode():
            output = task(batch).cpu()
    except InputError as error:
        raise InputError(f"slide {name}: {path}: {error}") from error
    if not output.isfinite().all():
        most = float(batch.features.abs().max())
        raise InputError(f"slide {name}: {path}: the output is not finite; its features are up to {most:.3g}")
    return output


def predict_bags(
    slides: Sequence[Any],
    task: Any,
    record: Any,
    names: Sequence[str],
    out: str | Path | None = None,
    *,
    format: str = "table",
    on_error: str = "skip",
) -> None:
    """Print or write the probability of each class of each slide; of survival the risk, and that of each bin of time.

    Args:
        slides: as `find_bags` returns them.
        task: with its weights.
        record: of the checkpoint.
        names: of the classes.
        out: file to write to; None prints.
        format: "table", "json" or "csv".
        on_error: "skip" names and leaves out an unreadable slide, "fail" stops.

    Raises:
        InputError: no slide can be read, or one cannot and `on_error` is "fail"; or two classes have one name.
        OSError: the result cannot be written.
    """
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise InputError(f"the names of the classes must be different ones, {twice[0]!r} is there twice")
    rows = list(_rows(slides, task, record, names, on_error))
    if not rows:
        raise InputError(f"none of the {len(slides)} slides can be read")
    if skipped := len(slides) - len(rows):
        print(f"{skipped} of {len(slides)} slides skipped", file=sys.stderr)
    write_bags(rows, format, out)


def write_bags(rows: list[dict[str, Any]], format: str, out: str | Path | None) -> None:
    """Print or write what is predicted of slides.

    Args:
        rows: one or more, with the same keys: what is told of a slide, and "probabilities" by class.
        format: "table", "json" or "csv".
        out: file to write to; None prints.

    Raises:
        OSError: the file cannot be written.
    """
    write_results(rows, format, out, _table, _csv)


def bag_row(
    name: str, path: Path, patches: int, output: torch.Tensor, task: Any, names: Sequence[str]
) -> dict[str, Any]:
    """Return what is told of a slide.

    Args:
        name: of the slide.
        path: of its features.
        patches: how many it has.
        output: `(1, classes)`, of the network.
        task: of it.
        names: of the classes.

    Returns:
        A row as `write_bags` takes it; of survival with the risk.
    """
    from softmaxfree.mil.tasks.survival import risk_of

    values = task.probabilities_of(output)[0].tolist()
    likeliest = max(range(len(values)), key=values.__getitem__)
    told = dict(zip(_HEAD, (name, str(path), patches, names[likeliest]), strict=True))
    risk = {"risk": float(risk_of(output))} if task.target == "survival" else {}
    return {**told, **risk, "probabilities": dict(zip(names, values, strict=True))}


def is_table(path: Path) -> bool:
    """Whether a file begins as one of the three formats does."""
    with path.open("rb") as file:
        start = b" ".join(file.read(4096).split())
    return start.startswith((b"slide_id,file,patches,predicted", b'[ { "slide_id": "', b"slide_id file patches"))


def _rows(
    slides: Sequence[Any], task: Any, record: Any, names: Sequence[str], on_error: str
) -> Iterator[dict[str, Any]]:
    for name, path, coords in tqdm(slides, unit="slide", disable=None if len(slides) > 1 else True, leave=False):
        try:
            slide, batch = open_slide(name, path, coords, task, record)
            logits = output_of(name, path, task, batch)
        except InputError as error:
            skip_or_fail(path, error, on_error, "slide")
            continue
        yield bag_row(name, path, slide.features.shape[0], logits, task, names)


def _table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    told = _told(rows[0])
    return [*told, *rows[0]["probabilities"]], [
        [*_told(row).values(), *(f"{p:.1%}" for p in row["probabilities"].values())] for row in rows
    ]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_told(rows[0]), *(f"p_{name}" for name in rows[0]["probabilities"])])
    for row in rows:
        writer.writerow([*_told(row).values(), *(f"{p:.6f}" for p in row["probabilities"].values())])
    return text.getvalue()


def _told(row: dict[str, Any]) -> dict[str, str]:
    """The cells before the probabilities."""
    cells = ((key, value) for key, value in row.items() if key != "probabilities")
    return {key: f"{value:.6f}" if isinstance(value, float) else str(value) for key, value in cells}
