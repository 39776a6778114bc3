"""Training and validation images: found as folders, given in a table, or drawn; and checked against each other."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from softmaxfree.data.class_folders import Listing, list_classes
from softmaxfree.data.class_tables import SPLIT_NAMES, read_table
from softmaxfree.errors import InputError
from softmaxfree.images import IMAGE_SUFFIXES, is_hidden

__all__ = ["draw_held_out", "equal_files", "held_out_part", "list_folder", "read_split"]

_FEW, _MANY = 2500, 5000  # images between which the held-out part falls from a fifth to a tenth
_HEAD = 65536  # bytes that are compared before whole files are


def list_folder(root: Path) -> tuple[dict[str, Listing], str]:
    """List the images of a folder, or tar file, of splits or of classes.

    Args:
        root: has folders or tar files for `train` (or `training`) and for `val` (or `valid`, `validation`, `dev`, or
            `test` where there is none of these), in any case; or `train` alone; or a folder for each class.

    Returns:
        The images by split, "train" and "val", or "all"; and which folders of splits were not used, empty if none.

    Raises:
        InputError: a split is there twice, or there are no images.
        FileNotFoundError: there is no such folder.
    """
    if root.is_file() and root.suffix.lower() == ".tar":
        return {"all": list_classes(root, ())}, ""
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {root}")
    entries = [path for path in sorted(root.iterdir()) if not is_hidden(path.name)]
    entries = [path for path in entries if path.is_dir() or path.suffix.lower() == ".tar"]
    places = {split: _place(entries, names, root) for split, names in SPLIT_NAMES.items()}
    train, val = places["train"], places["val"] or places["test"]
    if train and val:
        found = {"train": train, "val": val}
    elif not (train or val) or not _holds_classes(train or val):
        return {"all": list_classes(root)}, ""  # it is a class of this name
    elif train and len(entries) == 1:
        found = {"all": train}
    else:
        missing = "val" if train else "train"
        allowed = [name for split in ([missing, "test"] if train else [missing]) for name in SPLIT_NAMES[split]]
        held = ", ".join(path.name for path in entries)
        raise InputError(
            f"data.root: {root} needs a folder {', '.join(allowed[:-1])} or {allowed[-1]} beside {train or val}; it "
            f"holds {held}"
        )
    names = [name for names in SPLIT_NAMES.values() for name in names]
    unused = ", ".join(path.name for path in entries if path not in found.values())
    return {split: list_classes(place, names) for split, place in found.items()}, unused


def _holds_classes(place: Path | None) -> bool:
    if place is None or place.is_file():
        return place is not None
    inner = [path for path in place.iterdir() if not is_hidden(path.name)]
    return any(path.is_dir() for path in inner) and not any(path.suffix.lower() in IMAGE_SUFFIXES for path in inner)


def _place(entries: list[Path], names: Sequence[str], root: Path) -> Path | None:
    found = [path for path in entries if (path.name if path.is_dir() else path.stem).lower() in names]
    if len(folders := [path for path in found if path.is_dir()] or found) > 1:
        raise InputError(
            f"data.root: {root} has both {' and '.join(path.name for path in folders)}; one of them must go"
        )
    return folders[0] if folders else None


def held_out_part(num_images: int) -> float:
    """Return which part of the images is held out: a fifth of few, a tenth of many."""
    many = min(max((num_images - _FEW) / (_MANY - _FEW), 0), 1)
    return 0.2 - 0.1 * many


def draw_held_out(classes: Sequence[Hashable], part: float, seed: int) -> list[int]:
    """Draw the images that are held out: of each class the same part, and one image at least.

    Args:
        classes: of each image.
        part: to hold out.
        seed: of the drawing.

    Returns:
        Indices in order. A class with one image has none among them.
    """
    members = defaultdict(list)
    for i, name in enumerate(classes):
        members[name].append(i)
    generator = torch.Generator().manual_seed(seed)
    held: list[int] = []
    for indices in members.values():
        order = torch.randperm(len(indices), generator=generator).tolist()
        count = min(max(round(part * len(indices)), 1), len(indices) - 1)
        held += [indices[i] for i in order[:count]]
    return sorted(held)


def read_split(path: Path, names: Sequence[str]) -> list[int]:
    """Read which images are held out.

    Args:
        path: a CSV file with the columns `file` and `split`, train or val.
        names: of all images.

    Returns:
        Indices of the held-out images, in order.

    Raises:
        InputError: the table and the images are not the same files, or a split is empty.
        FileNotFoundError: there is no such file.
    """
    head, rows = read_table(path, "data.split")
    if [name.lower() for name in head] != ["file", "split"]:
        raise InputError(f"data.split: {path} must have the columns file and split, got {', '.join(head)}")
    splits: dict[str, str] = {}
    for line, (name, split) in rows:
        if split not in ("train", "val") or splits.setdefault(name, split) != split:
            raise InputError(f"data.split: {path}, line {line}: {name} must be train or val, and once, got {split!r}")
    known = set(names)
    missing, new = [name for name in splits if name not in known], [name for name in names if name not in splits]
    for wrong, what in ((missing, "files that are not among the images"), (new, "images without a row")):
        if wrong:
            raise InputError(f"data.split: {path} does not fit the data: {what}: {len(wrong)}, such as {wrong[0]}")
    held = [i for i, name in enumerate(names) if splits[name] == "val"]
    if not 0 < len(held) < len(names):
        raise InputError(f"data.split: {path} must have images of both train and val")
    return held


def equal_files(train: Listing, val: Listing) -> list[tuple[str, str]]:
    """Find files of the same content on both sides: first by size, then by their first bytes, then by all.

    Args:
        train: training images.
        val: validation images.

    Returns:
        For each validation image with equals in training, the first of these and itself.
    """
    sides = (train, val)
    groups = [tuple([(listing, i) for i in range(len(listing.names))] for listing in sides)]
    for step in (Listing.size, lambda listing, i: _digest(listing, i, _HEAD), _digest):
        groups = [part for group in groups for part in _parted(group, step)]
    pairs = [(left[0], image) for left, right in groups for image in right]
    return [tuple(str(listing.root / listing.names[i]) for listing, i in pair) for pair in pairs]  # type: ignore[misc]


def _parted(group: tuple, key: Callable[[Listing, int], Hashable]) -> list[tuple]:
    """Parts a group of images of both sides by a key; only parts with both sides remain."""
    parts: dict[Hashable, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, images in enumerate(group):
        for image in images:
            with suppress(OSError):  # what cannot be read is told when it is trained on
                parts[key(*image)][side].append(image)
    return [part for part in parts.values() if all(part)]


def _digest(listing: Listing, index: int, most: int = -1) -> bytes:
    file = listing.file(index)
    with file.open("rb") if isinstance(file, Path) else file as stream:
        return hashlib.blake2b(stream.read(most)).digest()
