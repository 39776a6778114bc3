"""Training and validation images as folders, and compared with each other."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from softmaxfree.data.class_folders import Listing, by_class, folder_around, list_classes, list_files
from softmaxfree.data.split_names import SPLIT_NAMES
from softmaxfree.errors import InputError
from softmaxfree.images import HIDDEN, IMAGE_SUFFIXES, is_hidden, is_of_system

__all__ = ["equal_files", "equal_in_two_classes", "head_digest", "list_folder"]

_Image = tuple[Listing, int]  # the second tells which of it
_Sides = dict[str, list[_Image]]  # by split, or by class

_SHOWN = 10  # folders in one message
_NAMES = [name for names in SPLIT_NAMES.values() for name in names]
_HEAD = 65536  # bytes that are compared before whole files are


def list_folder(root: Path) -> tuple[dict[str, Listing], str]:
    """List the images of a folder, or tar file, of splits or of classes.

    Args:
        root: has folders or tar files for `train` (or `training`) and for `val` (or `valid`, `validation`, `dev`, or
            `test` where there is none of these), in any case; or `train` alone; or a folder for each class. A tar file
            may have one folder around them.

    Returns:
        The images by split, "train" and "val", or "all"; and what beside the folders of splits was not used, empty if
        nothing.

    Raises:
        InputError: a split is there twice, or there are no images.
        FileNotFoundError: there is no such folder.
    """
    if root.is_file() and root.suffix.lower() == ".tar":
        return _list_tar(root)
    if root.is_file():
        raise InputError(f"data.root: {root} is a file; it must be a folder of images, a tar file or a table")
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {root}")
    entries = [path for path in sorted(root.iterdir()) if not is_of_system(path.name)]
    folders = [path.name for path in entries if _is_place(path)]
    found = _splits(folders, root, lambda name: _inside(root / name))
    if not found:
        return {"all": list_classes(root)}, ""
    beside = Counter(_kind(path.name) for path in entries if not _is_place(path))
    listings = {split: list_classes(root / name, _NAMES) for split, name in found.items()}
    return listings, _unused([name for name in folders if name not in found.values()], beside)


def _list_tar(root: Path) -> tuple[dict[str, Listing], str]:
    files = list_files(root)
    for around in dict.fromkeys(("", folder_around(files.names))):
        paths = [name.removeprefix(f"{around}/").split("/", 2) for name in files.names]
        depths = {(path[0], len(path)) for path in paths}
        tops = list(dict.fromkeys(path[0] for path in paths if len(path) > 1))
        inside = {name: ((name, 3) in depths, (name, 2) in depths) for name in tops}
        if found := _splits(tops, root / around, inside.__getitem__):
            listings = {split: by_class(files, f"{around}/{name}".lstrip("/"), _NAMES) for split, name in found.items()}
            beside = Counter(_kind(path[0]) for path in paths if len(path) == 1)
            return listings, _unused([name for name in tops if name not in found.values()], beside)
    return {"all": by_class(files)}, ""


def _is_place(path: Path) -> bool:
    return not is_hidden(path.name) and (path.is_dir() or path.suffix.lower() == ".tar")


def _kind(name: str) -> str:
    return HIDDEN if is_hidden(name) else Path(name).suffix.lower() or "without suffix"


def _unused(folders: Sequence[str], files: Counter[str]) -> str:
    more = [f"... and {len(folders) - _SHOWN} more"] if len(folders) > _SHOWN else []
    return ", ".join([*folders[:_SHOWN], *more, *(f"{count} {kind}" for kind, count in sorted(files.items()))])


def _splits(names: Sequence[str], place: Path, inside: Callable[[str], tuple[bool, bool]]) -> dict[str, str]:
    """The folder of each split among all folders; none where they are classes.

    `inside` tells whether there are folders in one of them, and images beside these.
    """
    places = {split: _folder(names, words, place) for split, words in SPLIT_NAMES.items()}
    train, val = places["train"], places["val"] or places["test"]
    if train and val:
        return {"train": train, "val": val}
    if not (only := train or val):
        return {}
    folders, images = inside(only)
    if folders and train and len(names) == 1:  # a single class could not be trained on
        return {"all": train}
    if images or not folders:
        return {}  # it is a class of this name
    missing = "val" if train else "train"
    allowed = [name for split in ([missing, "test"] if train else [missing]) for name in SPLIT_NAMES[split]]
    raise InputError(
        f"data.root: {place} needs a folder {', '.join(allowed[:-1])} or {allowed[-1]} beside {place / only}; it "
        f"holds {_unused(names, Counter())}"
    )


def _inside(place: Path) -> tuple[bool, bool]:
    if place.is_file():
        return True, False
    inner = [path for path in place.iterdir() if not is_hidden(path.name)]
    return any(path.is_dir() for path in inner), any(path.suffix.lower() in IMAGE_SUFFIXES for path in inner)


def _folder(names: Sequence[str], words: Sequence[str], place: Path) -> str:
    found = [name for name in names if name.lower().removesuffix(".tar") in words]
    if len(folders := [name for name in found if not name.lower().endswith(".tar")] or found) > 1:
        raise InputError(f"data.root: {place} has both {' and '.join(folders)}; one of them must go")
    return folders[0] if folders else ""


def equal_files(train: Listing, val: Listing) -> list[tuple[str, str]]:
    """Find files of the same content on both sides: first by size, then by their first bytes, then by all.

    Args:
        train: training images.
        val: validation images.

    Returns:
        For each validation image with equals in training, the first of these and itself.
    """
    groups = _equal({side: list(_images(listing)) for side, listing in (("train", train), ("val", val))})
    return [(_path(group["train"][0]), _path(image)) for group in groups for image in group["val"]]


def equal_in_two_classes(listings: Sequence[Listing]) -> list[tuple[str, str]]:
    """Find files of the same content in different classes, as `equal_files` does.

    Args:
        listings: images.

    Returns:
        The first file of each content and another one, for each further class that has it.
    """
    classes = dict[str, list[_Image]]()
    for listing in listings:
        for image in _images(listing):
            classes.setdefault(listing.classes[image[1]], []).append(image)
    return [
        (_path(first), _path(other))
        for (first, *_), *others in (group.values() for group in _equal(classes))
        for other, *_ in others
    ]


def head_digest(listing: Listing, index: int) -> bytes:
    """Return a digest of the first 64 KiB of a file; raises OSError where it cannot be read."""
    return _digest(listing, index, _HEAD)


def _images(listing: Listing) -> Iterator[_Image]:
    return ((listing, i) for i in range(len(listing.names)))


def _path(image: _Image) -> str:
    listing, index = image
    return str(listing.root / listing.names[index])


def _equal(sides: _Sides) -> list[_Sides]:
    """Groups of images of one content; only those with images of several sides."""
    groups = [sides]
    for step in (Listing.size, head_digest, _digest):
        groups = [part for group in groups for part in _parted(group, step)]
    return groups


def _parted(group: _Sides, key: Callable[[Listing, int], Hashable]) -> list[_Sides]:
    """Parts a group of images by a key; only parts with several sides remain."""
    parts: dict[Hashable, _Sides] = defaultdict(dict)
    for side, images in group.items():
        for image in images:
            with suppress(OSError):  # what cannot be read is told when it is trained on
                parts[key(*image)].setdefault(side, []).append(image)
    return [part for part in parts.values() if len(part) > 1]


def _digest(listing: Listing, index: int, most: int = -1) -> bytes:
    file = listing.file(index)
    with file.open("rb") if isinstance(file, Path) else file as stream:
        return hashlib.blake2b(stream.read(most)).digest()
