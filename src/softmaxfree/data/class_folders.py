"""Images of classes: the class is the first folder below the split's folder or tar file, however deep the image is."""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from softmaxfree.errors import InputError
from softmaxfree.images import HIDDEN, IMAGE_SUFFIXES, find_images, is_hidden, is_of_system, natural_key, read_image

__all__ = ["LabelledImages", "Listing", "by_class", "folder_around", "list_classes", "list_files"]


class _Part(NamedTuple):
    begin: int
    size: int


@dataclass(frozen=True)
class Listing:
    """Images with the names of their classes, not yet read.

    Attributes:
        root: folder or tar file of the images.
        names: of the files, below the root.
        classes: of each image.
        left_out: how many other files there are, by suffix or reason.
        parts: where each image is in the tar file; None in a folder.
        folder: below the root, in which the folders of classes are; empty if it is the root.
    """

    root: Path
    names: list[str]
    classes: list[str]
    left_out: Counter[str]
    parts: list[_Part] | None = None
    folder: str = ""

    @property
    def place(self) -> Path:
        """Where the folders of classes are."""
        return self.root / self.folder

    @classmethod
    def of_files(cls, root: Path, names: Sequence[str]) -> "Listing":
        """Return images without classes."""
        return cls(root, list(names), [], Counter())

    def select(self, indices: Sequence[int]) -> "Listing":
        """Return some of the images."""
        names, classes = [self.names[i] for i in indices], [self.classes[i] for i in indices]
        parts = None if self.parts is None else [self.parts[i] for i in indices]
        return replace(self, names=names, classes=classes, parts=parts)

    def file(self, index: int) -> Path | BinaryIO:
        """Return an image's path, or of a tar file its bytes."""
        if self.parts is None:
            return self.root / self.names[index]
        # Opened anew, as workers would share the place in an open file.
        begin, size = self.parts[index]
        with open(self.root, "rb") as tar:
            tar.seek(begin)
            file = _NamedBytes(tar.read(size))
        file.name = str(self.root / self.names[index])
        return file

    def size(self, index: int) -> int:
        """Return the bytes of an image's file."""
        return os.path.getsize(self.root / self.names[index]) if self.parts is None else self.parts[index].size


class LabelledImages(Dataset):
    """The images and labels of one split.

    Args:
        listing: the images.
        class_to_idx: label of each class.
        mode: "RGB" or "L".
        max_pixels: height times width from which an image is refused.
    """

    def __init__(
        self, listing: Listing, class_to_idx: dict[str, int], mode: Literal["RGB", "L"], max_pixels: int | None
    ) -> None:
        self.listing, self.class_to_idx, self.mode, self.max_pixels = listing, class_to_idx, mode, max_pixels
        self.targets = [class_to_idx[name] for name in listing.classes]

    def __len__(self) -> int:
        return len(self.targets)

    def label_bytes(self, index: int) -> bytes:
        """Return what tells whether a label was changed: its class."""
        return self.listing.classes[index].encode(errors="surrogateescape")

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.listing.file(index), self.mode, self.max_pixels), self.targets[index]

    def filename(self, index: int, absolute: bool = True) -> str:
        """Return the name of an image: of a tar file that of its member."""
        name = self.listing.names[index]
        return str(self.listing.root / name) if absolute else name


def list_classes(root: Path, split_names: Sequence[str] = ()) -> Listing:
    """List the images in the folders of classes.

    Args:
        root: folder that holds a folder a class, or a tar file of such folders. The tar file may have one folder named
            like the split around them.
        split_names: what a folder around those of a tar file may be called.

    Returns:
        The images in natural order.

    Raises:
        InputError: there are no images, more images than a class has lie outside the folders of the classes, or the tar
            file is broken.
    """
    return by_class(list_files(root), "", split_names)


def list_files(root: Path) -> Listing:
    """List the images of a folder or tar file, without classes; tar files in it are read as folders, as ImageNet's are.

    Args:
        root: folder or tar file.

    Returns:
        The images in natural order.

    Raises:
        InputError: the tar file is broken.
    """
    if root.is_dir():
        found = find_images(root)
        return Listing(root, [path.relative_to(root).as_posix() for path in found.files], [], found.left_out)
    left_out, members = _list_tar(root)
    return Listing(root, list(members), [], left_out, list(members.values()))


def folder_around(names: Sequence[str]) -> str:
    """Return the one folder that holds all files and has folders; empty if there is none."""
    tops = {name.split("/", 1)[0] for name in names}
    return tops.pop() if len(tops) == 1 and any(name.count("/") > 1 for name in names) else ""


def by_class(listing: Listing, folder: str = "", split_names: Sequence[str] = ()) -> Listing:
    """Return the images below a folder, of the classes that its folders are.

    A few images beside the folders are left out and counted.

    Args:
        listing: of images without classes.
        folder: in which the folders of classes are; empty for the root.
        split_names: what one more folder around those of a tar file may be called.

    Returns:
        The images.

    Raises:
        InputError: there are no images, or more than a class has lie outside the folders of the classes.
    """
    begin, place = f"{folder}/" if folder else "", listing.root / folder
    chosen = [i for i, name in enumerate(listing.names) if name.startswith(begin)]
    names = [listing.names[i].removeprefix(begin) for i in chosen]
    if listing.parts is not None and (around := folder_around(names)).lower() in split_names:
        return by_class(listing, begin + around)
    paths = [name.split("/", 1) for name in names]
    outside = [path[0] for path in paths if len(path) == 1]
    kept = [i for i, path in zip(chosen, paths, strict=True) if len(path) > 1]
    classes = [path[0] for path in paths if len(path) > 1]
    if len(outside) * max(len(set(classes)), 1) > len(classes):  # more than a class has: they may be one
        raise InputError(
            f"data.root: {place} has images outside any class folder: {outside[0]} ({len(outside)} such images, "
            f"{len(classes)} in class folders); each class needs a folder of its own, or data.train_csv a table of "
            "image and label"
        )
    if not classes:
        told = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"data.root: no images in {place}: there are no files {told} in the folders of classes")
    if outside:
        listing.left_out[f"image{'s' if len(outside) > 1 else ''} outside any class ({outside[0]})"] = len(outside)
    if listing.parts is None and (empty := _class_folders(place) - set(classes)):
        reason = f"class folder{'s' if len(empty) > 1 else ''} without images ({min(empty, key=natural_key)})"
        listing.left_out[reason] = len(empty)
    return replace(replace(listing, classes=[""] * len(listing.names)).select(kept), classes=classes, folder=folder)


class _NamedBytes(io.BytesIO):
    name: str


def _class_folders(root: Path) -> set[str]:
    return {entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name)}


def _list_tar(root: Path) -> tuple[Counter[str], dict[str, _Part]]:
    """Where each image of a tar file begins and ends, in natural order of their names."""
    left_out, hidden = Counter[str](), set[str]()
    try:
        with open(root, "rb") as file:
            parts = dict(_members(file, "", 0, left_out, hidden))
    except tarfile.TarError as error:
        raise InputError(f"data.root: {root} is no whole, uncompressed tar file: {error}") from error
    left_out[HIDDEN] += len(hidden)
    return +left_out, {name: parts[name] for name in sorted(parts, key=natural_key)}


def _members(
    file: BinaryIO, folder: str, begin: int, left_out: Counter[str], hidden: set[str]
) -> Iterator[tuple[str, _Part]]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = os.path.normpath(f"{folder}/{member.name}").lstrip("/")
            stem, suffix = os.path.splitext(name)
            parts = name.split("/")
            if (first := next((i for i, part in enumerate(parts) if is_hidden(part)), None)) is not None:
                hidden |= {"/".join(parts[: first + 1])} if not is_of_system(parts[first]) else set()
            elif member.isdir():
                continue
            elif not member.isreg() or member.issparse():
                left_out["links"] += 1
            elif suffix.lower() == ".tar":
                inner: Any = tar.extractfile(member)
                yield from _members(inner, stem, begin + member.offset_data, left_out, hidden)
            elif suffix.lower() in IMAGE_SUFFIXES:
                yield name, _Part(begin + member.offset_data, member.size)
            else:
                left_out[suffix.lower() or "without suffix"] += 1
