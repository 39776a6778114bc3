"""Images of classes: the class is the first folder below the split's folder or tar file, however deep the image is."""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from PIL import Image
from timm.data.readers.class_map import load_class_map
from torch.utils.data import Dataset

from softmaxfree.errors import InputError
from softmaxfree.images import IMAGE_SUFFIXES, find_images, is_hidden, natural_key, read_image

__all__ = ["ClassFolders"]


class ClassFolders(Dataset):
    """The images and labels of one split.

    Args:
        root: folder that holds a folder a class, or a tar file of such folders. The tar file may have one folder named
            like the split around them; tar files inside it are read as folders, as ImageNet's are.
        split_names: what a folder around those of a tar file may be called.
        mode: "RGB" or "L".
        max_pixels: height times width from which an image is refused.
        class_map: labels by class, or a text file with a class a line; None numbers the classes in natural order.

    Attributes:
        class_to_idx: label of each class.
        left_out: how many files were left out, by suffix or reason.

    Raises:
        InputError: there are no images, an image lies outside the folders of the classes, or the tar file is broken.
    """

    def __init__(
        self,
        root: Path,
        split_names: tuple[str, ...],
        mode: Literal["RGB", "L"],
        max_pixels: int | None,
        class_map: Any = None,
    ) -> None:
        self.root, self.mode, self.max_pixels = root, mode, max_pixels
        if root.is_dir():
            found = find_images(root)
            self.left_out, self.parts = found.left_out, None
            names = [path.relative_to(root).as_posix() for path in found.files]
        else:
            self.left_out, members = _list_tar(root)
            names, self.parts = _without_split_folder(list(members), split_names), list(members.values())
        if outside := [name for name in names if "/" not in name]:
            raise InputError(
                f"data.root: {root} has images outside any class folder: {outside[0]} ({len(outside)} such images)"
            )
        classes = [name.split("/", 1)[0] for name in names]
        if class_map:
            self.class_to_idx = _load_class_map(class_map, root)
        else:
            self.class_to_idx = {name: i for i, name in enumerate(sorted(set(classes), key=natural_key))}
        keep = [i for i, name in enumerate(classes) if name in self.class_to_idx]
        if len(keep) < len(names):
            self.left_out["of no class in class_map"] += len(names) - len(keep)
        if not keep:
            told = ", ".join(IMAGE_SUFFIXES)
            raise InputError(f"data.root: no images in {root}: there are no files {told} in the folders of classes")
        self.names = [names[i] for i in keep]
        self.labels = [self.class_to_idx[classes[i]] for i in keep]
        if self.parts is not None:
            self.parts = [self.parts[i] for i in keep]
        elif empty := _class_folders(root) - set(classes):
            self.left_out[f"class folder{'s' if len(empty) > 1 else ''} without images ({sorted(empty)[0]})"] = len(
                empty
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file = self.root / self.names[index] if self.parts is None else self._extract(index)
        return read_image(file, self.mode, self.max_pixels), self.labels[index]

    def filename(self, index: int, absolute: bool = True) -> str:
        """Return the name of an image: of a tar file that of its member."""
        return str(self.root / self.names[index]) if absolute else self.names[index]

    def _extract(self, index: int) -> BinaryIO:
        # Opened anew, as workers would share the place in an open file.
        assert self.parts is not None
        begin, size = self.parts[index]
        with open(self.root, "rb") as tar:
            tar.seek(begin)
            file = _NamedBytes(tar.read(size))
        file.name = self.filename(index)
        return file


def _load_class_map(class_map: Any, root: Path) -> dict[str, int]:
    try:
        found = load_class_map(class_map, str(root))
    except (AssertionError, ValueError) as error:  # timm's for a file that is not there or of another kind
        raise InputError(f"data.source_args.class_map: {error}") from error
    if sorted(found.values()) != list(range(len(found))):
        raise InputError(f"data.source_args.class_map must number {len(found)} classes from 0 to {len(found) - 1}")
    return found


class _NamedBytes(io.BytesIO):
    name: str


class _Part(NamedTuple):
    begin: int
    size: int


def _class_folders(root: Path) -> set[str]:
    return {entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name)}


def _list_tar(root: Path) -> tuple[Counter[str], dict[str, _Part]]:
    """Where each image of a tar file begins and ends, in natural order of their names."""
    left_out: Counter[str] = Counter()
    try:
        with open(root, "rb") as file:
            parts = dict(_members(file, "", 0, left_out))
    except tarfile.TarError as error:
        raise InputError(f"data.root: {root} is no whole, uncompressed tar file: {error}") from error
    return left_out, {name: parts[name] for name in sorted(parts, key=natural_key)}


def _members(file: BinaryIO, folder: str, begin: int, left_out: Counter[str]) -> Iterator[tuple[str, _Part]]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = os.path.normpath(f"{folder}/{member.name}").lstrip("/")
            stem, suffix = os.path.splitext(name)
            if member.isdir() or any(is_hidden(part) for part in name.split("/")):
                continue
            if not member.isreg() or member.issparse():
                left_out["links"] += 1
            elif suffix.lower() == ".tar":
                inner: Any = tar.extractfile(member)
                yield from _members(inner, stem, begin + member.offset_data, left_out)
            elif suffix.lower() in IMAGE_SUFFIXES:
                yield name, _Part(begin + member.offset_data, member.size)
            else:
                left_out[suffix.lower() or "without suffix"] += 1


def _without_split_folder(names: list[str], split_names: tuple[str, ...]) -> list[str]:
    tops = {name.split("/", 1)[0] for name in names}
    if len(tops) == 1 and tops <= set(split_names) and all(name.count("/") > 1 for name in names):
        return [name.split("/", 1)[1] for name in names]
    return names
