"""What there is to tell of images: which are unused, and which are on both sides."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from softmaxfree.data.class_folders import Listing
from softmaxfree.data.splitting import equal_files, equal_in_two_classes
from softmaxfree.images import IMAGE_SUFFIXES, find_images, is_hidden
from softmaxfree.printing import few

__all__ = ["MOST_COMPARED", "contradictions", "equal_images", "similar_names", "unused_images"]

MOST_COMPARED = 100_000  # files; to ask for the size of more takes minutes on a shared disk
_FOLDERS = 5  # in one message


def equal_images(train: Listing, val: Listing) -> tuple[int, str]:
    """Return how many, and in words how many, validation images are also trained on, byte for byte.

    Args:
        train: training images.
        val: validation images.

    Returns:
        The number and one line; 0 and empty if there are none, if there are too many images to compare, and in all
        processes but the first.
    """
    few = len(train.names) + len(val.names) <= MOST_COMPARED
    if not few or rank_zero_only.rank != 0 or not (pairs := equal_files(train, val)):  # type: ignore[attr-defined]
        return 0, ""
    first, second = pairs[0]
    same = f"{second} is on both sides" if first == second else f"{second} is the same file as {first}"
    return len(pairs), (
        f"{len(pairs)} validation image{'s are' if len(pairs) > 1 else ' is'} also trained on, which makes the score "
        f"too good: {same}"
    )


def contradictions(listings: Sequence[Listing]) -> str:
    """Return in words how many images are in several classes, byte for byte.

    Args:
        listings: all images.

    Returns:
        One line; empty if there are none, if there are too many images to compare, and in all processes but the first.
    """
    few = sum(len(listing.names) for listing in listings) <= MOST_COMPARED
    if not few or rank_zero_only.rank != 0 or not (pairs := equal_in_two_classes(listings)):  # type: ignore[attr-defined]
        return ""
    first, second = pairs[0]
    count = f"{len(pairs)} image{'s are in several classes each' if len(pairs) > 1 else ' is in several classes'}"
    return f"{count}, of which one at most is right: {second} is the same file as {first}"


def similar_names(classes: Iterable[str]) -> str:
    """Return in words which classes have names that are alike but for their writing; empty if there are none.

    That is case, spaces, the composition of letters (`é` as one character or two), and `1` and `1.0`.

    Args:
        classes: their names.

    Returns:
        One line.
    """
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_bare(name), []).append(name)
    alike = [_told_apart(sorted(names)) for names in groups.values() if len(names) > 1]
    return f"classes whose names differ in their writing alone count as two: {few(alike, _FOLDERS)}" if alike else ""


def _told_apart(names: list[str]) -> str:
    """Names beside each other, in ASCII where they would look the same."""
    same = len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    return " and ".join(map(ascii if same else repr, names))


def _bare(name: str) -> str:
    """A name without case, spaces and the zeros after a point, its letters composed."""
    bare = "".join(unicodedata.normalize("NFKC", name).casefold().split())
    return re.sub(r"^(-?\d+)\.0+$", r"\1", bare)


def unused_images(root: Path, used: Collection[Path], deep: bool = True) -> str:
    """Return in words how many images of a folder are not used, and where they are.

    Args:
        root: the folder.
        used: files below it that are used.
        deep: whether its inner folders are looked through.

    Returns:
        One line; empty if all are used.
    """
    there = find_images(root).files if deep else sorted(root.iterdir())
    images = [path for path in there if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name)]
    known = set(used)
    unused = [path for path in images if path not in known]
    if unused:  # only then, as it asks for each file
        known = {path.resolve() for path in used}
        unused = [path for path in unused if path.resolve() not in known]
    folders = Counter(path.relative_to(root).parent.as_posix() for path in unused)
    named = [f"{count} in {root if folder == '.' else folder}" for folder, count in folders.items()]
    return f"images left out: {few(named, _FOLDERS)}" if named else ""
