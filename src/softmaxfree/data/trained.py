"""Which files a run was trained on, kept in its folder: so that later scores can tell whether they are of these."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from softmaxfree.atomic import atomic_write
from softmaxfree.data.class_folders import Listing, list_files
from softmaxfree.data.splitting import equal_files, head_digest
from softmaxfree.data.telling import MOST_COMPARED
from softmaxfree.errors import InputError

__all__ = ["TRAINED", "TrainedFiles", "measured_before", "note_trained", "read_trained", "require_trained"]

TRAINED = "trained.json"
"""Its name in the folder of a run."""

_MOST_READ = 10_000  # files that are opened for it


class TrainedFiles(NamedTuple):
    """The training images of a run, or of a part of it.

    Attributes:
        root: folder or tar file, absolute.
        files: what is known of the content of each, by its name below the root: the number of bytes and, of up to
            10,000 files, a digest of the first ones. Of slides, which are known by their names, nothing.
        start: whether the weights that the run starts from were trained on them, and the run itself was not.
        labels: a digest of the labels, boxes or masks of all; "" where it is not known.
    """

    root: str
    files: dict[str, str]
    start: bool = False
    labels: str = ""


def read_trained(run_dir: Path) -> list[TrainedFiles]:
    """Return what a run was trained on, after what its first weights were; the last part last; empty if not told."""
    try:
        parts = json.loads((run_dir / TRAINED).read_text(encoding="utf-8"))
        return [
            TrainedFiles(str(part["root"]), dict(part["files"]), bool(part.get("start")), str(part.get("labels", "")))
            for part in parts
        ]
    except (OSError, ValueError, KeyError, TypeError):  # an earlier version's, or cut off by a full disk
        return []


def note_trained(run_dir: Path, data: Any, goes_on: bool, start: str | None = None) -> list[str]:
    """Note what a run, or a part of it, trains on, and what the weights that it starts from were trained on.

    Args:
        run_dir: folder of the run.
        data: its data module, set up. Of more than 100,000 files nothing is noted, nor of data without files.
        goes_on: whether parts were before, whose images stay noted.
        start: of a new run the weights that it starts from: a path in the folder of a run, or else not known.

    Returns:
        Of each earlier part with other images a sentence, and one if images that validate were trained on before.

    Raises:
        OSError: the disk is full.
    """
    now, unit = _files_of(data, "train"), getattr(data, "unit", "image")
    before = read_trained(run_dir) if goes_on else _of_start(start)
    others = [part for part in before if now is None or part.files != now.files]
    parts = [*others, *([now] if now is not None else [])]  # the same images elsewhere take the place of these
    if parts:
        with atomic_write(run_dir / TRAINED) as file:
            file.write_text(json.dumps([part._asdict() for part in parts], indent=0), encoding="utf-8")
    told = [
        f"the run was begun on other {unit}s, {len(part.files)}{f' of {part.root}' if part.root else ''}, and went on "
        "with those of now: its weights are trained on both"
        for part in others
        if not part.start
    ]
    same = [part for part in before if part not in others and not part.start]
    if now is not None and any(_labels_differ(part, now) for part in same):
        told.append(f"labels of the training {unit}s were changed since the run began: its weights are trained on both")
    seen, total = _seen([part for part in others if part.start], data)
    if seen:
        told.append(
            f"{len(seen)} of the {total} {unit}s to validate were trained on by the run whose weights this one starts "
            f"from, such as {min(seen)}: the score is too good; one split for both runs keeps them apart"
        )
    return told


def _of_start(given: str | None) -> list[TrainedFiles]:
    """What weights were trained on, by the nearest run folder that holds them."""
    path = Path((given or "").removeprefix("local-dir:")).expanduser()
    if not given or not path.exists():  # a name
        return []
    path = path.resolve()
    parts = next(filter(None, map(read_trained, (path, *path.parents[:2]))), [])
    return [part._replace(start=True) for part in parts]


def require_trained(run_dir: Path, data: Any) -> None:
    """Refuse data whose training images are not those that a finished run was trained on.

    Args:
        run_dir: folder of the run.
        data: its data module, set up to train.

    Raises:
        InputError: files were added, taken away or changed since, or their labels.
    """
    before, now = read_trained(run_dir), _files_of(data, "train")
    if not before or now is None:
        return
    unit, last = getattr(data, "unit", "image"), before[-1]
    if last.files != now.files:
        changed = min(name for name, _ in last.files.items() ^ now.files.items())
        what = f"its training {unit}s are others now, such as {changed}"
    elif _labels_differ(last, now):
        what = f"the labels of its training {unit}s were changed since"
    else:
        return
    raise InputError(
        f"the run in {run_dir} is finished, and {what}: its report stays as it is; `softmaxfree validate` measures "
        "it, and a larger trainer.max_epochs goes on"
    )


def _labels_differ(before: TrainedFiles, now: TrainedFiles) -> bool:
    return bool(before.labels and now.labels and before.labels != now.labels)


def measured_before(run_dir: Path, data: Any) -> str:
    """Return in words how many of the images that are measured are among those that a run was trained on.

    Slides are the same where their names are. Files are the same where their content is; where the trained one is gone
    or was overwritten, where what is noted of its content is, or in very large sets name and size.

    Args:
        run_dir: folder of the run.
        data: data module, set up to validate.

    Returns:
        One line; empty where the run or the data does not tell its files.
    """
    parts = read_trained(run_dir)
    unit = getattr(data, "unit", "image")
    seen, total = _seen(parts, data)
    if not parts or not total:
        return ""
    if seen is None:
        return f"not compared with those of the training, as there are more than {MOST_COMPARED:,} images"
    if not seen:
        return f"none of the {total} {unit}s measured was trained on"
    return f"{len(seen)} of the {total} {unit}s measured were trained on, such as {min(seen)}: the score is too good"


def _seen(parts: Sequence[TrainedFiles], data: Any) -> tuple[Collection[str] | None, int]:
    """Which of those that are measured are in the parts, None where they are too many, and how many are measured."""
    if hasattr(data, "names_of"):
        measured = [*data.names_of("val"), *data.names_of("test")]
        return {name for part in parts for name in part.files} & set(measured), len(measured)
    val = data.listing("val") if hasattr(data, "listing") else None
    if val is None or not val.names:
        return (), 0
    total = len(val.names)
    if total + sum(len(part.files) for part in parts) > MOST_COMPARED:
        return None, total
    return set[str]().union(*(_among(part, val) for part in parts)), total


def _among(part: TrainedFiles, val: Listing) -> set[str]:
    """The files of the content that was noted; where the trained file is as it was, they are compared as a whole."""
    root = Path(part.root)
    if root.is_file():  # a tar file, whose members have places
        there = list_files(root)
    else:
        there = Listing.of_files(root, [name for name in part.files if (root / name).is_file()])
    there = replace(there, classes=[""] * len(there.names))
    noted_of = [part.files.get(name) for name in there.names]
    train = there.select(
        [i for i, own in enumerate(noted_of) if own is not None and own == _content(there, i, " " in own)]
    )
    noted = part.files.keys() - set(train.names)  # gone, or overwritten since: what is left of them is this
    contents = {part.files[name] for name in noted}
    sizes = {content.split(" ")[0] for content in contents}
    moved = set[str]()
    for i, name in enumerate(val.names):
        if _content(val, i, deep=False) in sizes:
            known = _content(val, i, deep=True) in contents or (name in noted and " " not in part.files[name])
            moved |= {str(val.root / name)} if known else set()
    return moved | {second for _, second in equal_files(train, val)}


def _files_of(data: Any, split: str) -> TrainedFiles | None:
    if hasattr(data, "names_of"):
        return TrainedFiles("", dict.fromkeys(data.names_of(split), ""), labels=data.labels_digest(split))
    listing = data.listing(split) if hasattr(data, "listing") else None
    if listing is None or len(listing.names) > MOST_COMPARED:
        return None
    deep = len(listing.names) <= _MOST_READ
    files = {name: _content(listing, i, deep) for i, name in enumerate(listing.names)}
    labels = data.labels_digest(split) if deep and hasattr(data, "labels_digest") else ""
    return TrainedFiles(os.path.abspath(listing.root), files, labels=labels)


def _content(listing: Listing, index: int, deep: bool) -> str:
    try:
        return f"{listing.size(index)}{f' {head_digest(listing, index).hex()[:32]}' if deep else ''}"
    except OSError:  # it is told when it is trained on
        return ""
