"""Training and validation images as folders, and compared with each other."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path

from softmaxfree.data.class_folders import Listing, list_classes
from softmaxfree.data.class_tables import SPLIT_NAMES
from softmaxfree.errors import InputError
from softmaxfree.images import IMAGE_SUFFIXES, is_hidden

__all__ = ["equal_files", "list_folder"]

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
