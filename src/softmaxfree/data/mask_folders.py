"""Where the images and masks of a folder are, and which belong together."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from softmaxfree.data.mask_images import MaskPair
from softmaxfree.data.split_names import SIDES
from softmaxfree.data.telling import unused_images
from softmaxfree.errors import InputError
from softmaxfree.images import find_images, is_hidden, natural_key

__all__ = ["MaskFolders", "by_name", "holds_masks", "pair_by_name"]

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "labels", "annotations", "mask", "label", "annotation")
_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_SUFFIX = re.compile(r"[-_. ][^\W\d][^\d]*")  # that may follow a stem: no digits, so that 1 does not match 10


class MaskFolders:
    """The pairs of images and masks below a root.

    They lie in `images` and one of `masks`, `labels`, `annotations`, with folders of splits inside or outside of these,
    or without splits.

    Args:
        root: of the data.

    Attributes:
        pairs: of each split that has a folder, the others' key is ""; by the image's path relative to the root.
        told: what there is to tell, in words.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: this is no such layout, or a file has no partner.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"data.root: there is no folder {root}")
        self.root = root
        self.told: list[str] = []
        self.pairs: dict[str, dict[str, MaskPair]] = {}
        inner = _split_folders(root)
        if _find(root, _IMAGES) is None and inner:
            for split, folder in inner.items():
                self._add(split, *_both(folder))
        else:
            self._add_inner(*_both(root))
        used = [path for own in self.pairs.values() for pair in own.values() for path in pair]
        if unused := unused_images(root, used):
            self.told.append(unused)

    def _add_inner(self, images: Path, masks: Path) -> None:
        """Add what has its splits, if any, in the folders of images and masks."""
        image_splits, mask_splits = _split_folders(images), _split_folders(masks)
        if image_splits.keys() != mask_splits.keys():
            lone = sorted(image_splits.keys() ^ mask_splits.keys())[0]
            having, other = (images, masks) if lone in image_splits else (masks, images)
            raise InputError(f"data.root: {having} has a folder for {lone}, and {other} has none")
        for split in image_splits:
            self._add(split, image_splits[split], mask_splits[split])
        if not image_splits:
            self._add("", images, masks)

    def _add(self, split: str, images: Path, masks: Path) -> None:
        image_files, mask_files = self._files(images, "images"), self._files(masks, "masks")
        if lossy := [path for path in mask_files.values() if path.suffix.lower() in _LOSSY]:
            raise InputError(
                f"data.root: the mask {lossy[0]} is a JPEG, which changes numbers ({len(lossy)} such files); save "
                "masks as PNG"
            )
        image_end, mask_end = _endings(image_files, mask_files)
        for end, what in ((image_end, "image"), (mask_end, "mask")):
            if end:
                self.told.append(f"names of {what}s end in {end}")
        pairs = pair_by_name(_without(image_files, image_end), _without(mask_files, mask_end))
        self.pairs[split] = {pair.image.relative_to(self.root).as_posix(): pair for pair in pairs}

    def _files(self, folder: Path, what: str) -> dict[str, Path]:
        found = find_images(folder)
        if found.left_out:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.left_out.items()))
            self.told.append(f"left out of {folder.relative_to(self.root)}: {kinds}")
        if not found.files:
            raise InputError(f"data.root: there are no {what} in {folder}")
        return by_name(found.files, folder)


def holds_masks(root: Path) -> bool:
    """Return whether a folder, or one of its splits, has images and masks of which half have equal names at least."""
    for folder in (root, *_split_folders(root).values()):
        images, masks = _find(folder, _IMAGES), _find(folder, _MASKS)
        if images is None or masks is None:
            continue
        found, others = (
            {path.relative_to(place).with_suffix("").as_posix(): path for path in find_images(place).files}
            for place in (images, masks)
        )
        if found and others:
            image_end, mask_end = _endings(found, others)
            both = _without(found, image_end).keys() & _without(others, mask_end).keys()
            return 2 * len(both) >= min(len(found), len(others))
    return False


def by_name(files: Collection[Path], folder: Path) -> dict[str, Path]:
    """Return files by their path in a folder without the suffix.

    Args:
        files: below the folder.
        folder: that is left out of the names.

    Returns:
        The files.

    Raises:
        InputError: two have the same name.
    """
    out: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in out:
            raise InputError(f"data.root: {out[name]} and {path.name} have the same name; remove one")
        out[name] = path
    return out


def pair_by_name(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[MaskPair]:
    """Pair files of equal names.

    Args:
        images: by name.
        masks: by name.

    Returns:
        The pairs, in natural order of their names.

    Raises:
        InputError: an image has no mask, or a mask no image.
    """
    lone = [
        f"{there[names[0]]} has no {what} ({len(names)} in all)"
        for there, missing, what in ((images, masks, "mask"), (masks, images, "image"))
        if (names := sorted(there.keys() - missing.keys(), key=natural_key))
    ]
    if lone:
        raise InputError(f"data.root: {'; '.join(lone)}; add what is missing, or move these files out")
    return [MaskPair(images[name], masks[name]) for name in sorted(images, key=natural_key)]


def _find(folder: Path, names: Collection[str]) -> Path | None:
    """The folder of one of these names, in any case, that has images; else one that has none."""
    there = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in names]
    if len(there) > 1:
        there = [path for path in there if find_images(path).files] or there[:1]
    if len(there) > 1:
        raise InputError(f"data.root: {folder} has {' and '.join(path.name for path in there)}; one of them must go")
    return there[0] if there else None


def _both(folder: Path) -> tuple[Path, Path]:
    images, masks = _find(folder, _IMAGES), _find(folder, _MASKS)
    if images is None or masks is None:
        found = ", ".join(sorted(path.name for path in folder.iterdir() if not is_hidden(path.name))[:10]) or "nothing"
        raise InputError(
            f"data.root: {folder} needs a folder images and one of {', '.join(_MASKS[:3])}; it holds {found}"
        )
    return images, masks


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders of splits in a folder, the one that trains first."""
    there = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    out: dict[str, Path] = {}
    for split, names in SIDES.items():
        found = [there[name] for name in names if name in there]
        if len(found) > 1 and split == "train":
            raise InputError(f"data.root: {folder} has {found[0].name} and {found[1].name}; one of them must go")
        if found:
            out[split] = found[0]
    return out


def _endings(images: Mapping[str, Any], masks: Mapping[str, Any]) -> tuple[str, str]:
    """What all names of images and all of masks end in, where more of them are equal without it."""
    best, most = ("", ""), len(images.keys() & masks.keys())
    for image_end in ("", *_common_ends(images)):
        stems = _without(images, image_end).keys()
        for mask_end in ("", *_common_ends(masks)):
            if (count := len(stems & _without(masks, mask_end).keys())) > most:
                best, most = (image_end, mask_end), count
    return best


def _common_ends(names: Collection[str]) -> list[str]:
    """The shortest first."""
    stems = [name.rpartition("/")[2] for name in names]
    least = min(stems, key=len)
    ends = [least[-length:] for length in range(1, len(least)) if all(stem.endswith(least[-length:]) for stem in stems)]
    return [end for end in ends if _SUFFIX.fullmatch(end)]


def _without(files: Mapping[str, Path], end: str) -> dict[str, Path]:
    return {name[: len(name) - len(end)]: path for name, path in files.items()}
