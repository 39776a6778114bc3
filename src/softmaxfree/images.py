"""Images from files: what is one, where they are, how one is read. Training and prediction of every task use this."""

import os
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image

from softmaxfree.errors import InputError

__all__ = [
    "HIDDEN",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "FoundImages",
    "check_resized",
    "convert_image",
    "find_images",
    "is_hidden",
    "is_of_system",
    "natural_key",
    "open_upright",
    "read_image",
    "resized_shape",
    "shown_shape",
    "stored_shape",
    "tell_left_out",
    "upright",
]

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".avif",
)  # fmt: skip
"""Suffixes of image files, in lower case; a file's own may be in upper case."""

HIDDEN = "hidden"
"""What hidden files and folders are counted as."""

MAX_PIXELS = 2 * 89_478_485
"""The size above which Pillow itself refuses an image, as it may be made to fill the memory."""

_SUFFIXES = frozenset(IMAGE_SUFFIXES)
_HIDDEN = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}  # folders, beside whatever begins with a dot
_OF_SYSTEM = {".DS_Store", "Thumbs.db", "desktop.ini"}  # files, beside whatever begins with `._`

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the orientation that EXIF tells

# tags of TIFF
_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 259, 262, 284, 338, 339

_NUMBER = re.compile(r"(\d+)")
_limit = threading.Lock()
_told_of_few_bits: list[str] = []  # one image is named, not each of a folder


@dataclass(frozen=True)
class FoundImages:
    """What `find_images` found.

    Attributes:
        files: the images, in natural order of their paths below the folder.
        left_out: how many other files and hidden folders there are, by suffix or reason.
    """

    files: list[Path]
    left_out: Counter[str]


def find_images(folder: str | os.PathLike) -> FoundImages:
    """Find the images below a folder, as deep as they are.

    Left out and counted are hidden files and folders (`.name`, `__MACOSX`, ...), other files, and a folder that a link
    shows for the second time. Files that the system puts into each folder (`.DS_Store`, `Thumbs.db`, ...) do not count.

    Args:
        folder: where to look; it may be hidden itself.

    Returns:
        The images and what was left out.

    Raises:
        OSError: a folder cannot be listed.
    """
    files: list[str] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    folders = [os.fspath(folder)]
    while folders:
        path = folders.pop()
        real = os.path.realpath(path)
        if real in seen:
            left_out["folder linked twice"] += 1
            continue
        seen.add(real)
        inner, links = [], []
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    left_out[HIDDEN] += not is_of_system(entry.name)
                elif entry.is_symlink() and os.path.isdir(entry.path):  # which a link to itself does not hinder
                    links.append(entry.path)
                elif not entry.is_symlink() and entry.is_dir():
                    inner.append(entry.path)
                elif (suffix := os.path.splitext(entry.name)[1].lower()) in _SUFFIXES:
                    files.append(entry.path)
                else:
                    left_out[suffix or "without suffix"] += 1
        folders[:0] = sorted(links, key=natural_key, reverse=True)  # last, so that a folder is found at its own place
        folders += inner
    return FoundImages([Path(file) for file in sorted(files, key=natural_key)], +left_out)


def tell_left_out(left_out: Counter[str]) -> str:
    """Return one line such as "3 files left out: 2 .txt, 1 without suffix"; empty if there are none."""
    if not left_out:
        return ""
    count = sum(left_out.values())
    parts = ", ".join(f"{n} {what}" for what, n in sorted(left_out.items(), key=lambda item: (-item[1], item[0])))
    things = (
        ("file or folder", "files and folders")
        if any("folder" in what or what == HIDDEN for what in left_out)
        else ("file", "files")
    )
    return f"{count} {things[count > 1]} left out: {parts}"


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, and none of the data."""
    return name.startswith(".") or name in _HIDDEN or name in _OF_SYSTEM


def is_of_system(name: str) -> bool:
    """Return whether a hidden file of this name is one that the system puts into each folder."""
    return name.startswith("._") or name in _OF_SYSTEM


def natural_key(name: str) -> tuple[list, str]:
    """Return what sorts names as people do: `a2` before `a10`, whatever the case."""
    parts: list = _NUMBER.split(name.lower())
    parts[1::2] = map(Decimal, parts[1::2])  # `int` takes 4,300 digits at most
    return parts, name


def read_image(
    file: str | os.PathLike | BinaryIO, mode: Literal["RGB", "L"] = "RGB", max_pixels: int | None = MAX_PIXELS
) -> Image.Image:
    """Read an image as it is shown: upright by its EXIF orientation, its first frame if there are several.

    See `convert_image` for how colours and ranges are brought to 8 bits.

    Args:
        file: path, or binary file that can be searched.
        mode: colour or grey.
        max_pixels: height times width from which an image is refused, against files made to fill the memory; None
            is no limit.

    Returns:
        The image in memory; the file is closed if it was given by its path.

    Raises:
        InputError: it is no image, broken, too large, or cannot be shown in 8 bits; the message names the file.
        OSError: there is no such file, or it may not be read.
    """
    return convert_image(open_upright(file, max_pixels), mode, _name(file))


def open_upright(file: str | os.PathLike | BinaryIO, max_pixels: int | None = MAX_PIXELS) -> Image.Image:
    """Read an image upright in the mode of its file: what `read_image` begins with.

    Args:
        file: path, or binary file that can be searched.
        max_pixels: see `read_image`.

    Returns:
        The image in memory.

    Raises:
        InputError: it is no image, broken or too large; the message names the file.
        OSError: there is no such file, or it may not be read.
    """
    try:
        with _pillow_limit(max_pixels), Image.open(file) as image:
            _check_size(image, max_pixels, _name(file))
            image.load()
            return upright(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        with _pillow_limit(None), Image.open(file) as image:
            _check_size(image, max_pixels, _name(file))
        raise InputError(f"{_name(file)} cannot be read: {error}") from error  # a frame or tile of it is larger
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = "it is no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{_name(file)} cannot be read: {' '.join(str(why).split())}") from error


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF tells, and without what told so; broken EXIF tells nothing, as in viewers."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # struct.error, SyntaxError, ...
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format  # which tells the range of the values
    turned.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return turned


def convert_image(image: Image.Image, mode: Literal["RGB", "L"], name: str = "the image") -> Image.Image:
    """Return an image in 8 bits, in colour or grey.

    Integers are scaled by the range of their format, so that the same value is the same grey in every file: 16 bits by
    1 / 65535, 12 bits by 1 / 4095. Floating point numbers must be in [0, 1]; of others no file tells what is white.
    Integers of 32 bits are refused for the same reason. Transparency is left out and the colour below it kept, as
    timm and torchvision do.

    Args:
        image: in any mode of Pillow.
        mode: wanted.
        name: of its file, for the message.

    Returns:
        The image.

    Raises:
        InputError: what it holds cannot be shown so; the message says why.
    """
    _check_tiff(image, name)
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image, name))
    if image.mode in ("P", "PA", "La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in ("1", "L", "LA", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def stored_shape(file: str | os.PathLike | BinaryIO) -> tuple[int, int]:
    """Return height and width of an image as it is stored, before its EXIF orientation turns it."""
    with _pillow_limit(None), Image.open(file) as image:
        return image.height, image.width


def shown_shape(file: str | os.PathLike) -> tuple[int, int]:
    """Return height and width of an image as it is shown, turned by its EXIF orientation; only its head is read."""
    with _pillow_limit(None), Image.open(file) as image:
        try:
            turn = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # as in `upright`
            turn = 1
        return (image.width, image.height) if turn in (5, 6, 7, 8) else (image.height, image.width)


def resized_shape(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of an image whose shorter side becomes `short`, as far as the longer is at most `long`.

    Args:
        height: of the image.
        width: of the image.
        size: `short` and `long`, pixels.

    Returns:
        Height and width, each at least 1.
    """
    short, long = size
    ratio = min(short / min(height, width), long / max(height, width))
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def check_resized(image: Image.Image, short: int, name: str = "the image") -> None:
    """Refuse a strip that fills the memory once its shorter side is resized, however few pixels it has.

    Args:
        image: to be resized.
        short: its shorter side then, pixels.
        name: of its file, for the message.

    Raises:
        InputError: it would have more than `MAX_PIXELS`.
    """
    height, width = resized_shape(image.height, image.width, (short, sys.maxsize))
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{name} is {image.height} high and {image.width} wide, and {height} and {width} when its shorter side is "
            f"resized to {short}; allowed are {MAX_PIXELS} pixels; crop it"
        )


def _name(file: str | os.PathLike | BinaryIO) -> str:
    return os.fspath(file) if isinstance(file, str | os.PathLike) else str(getattr(file, "name", "the image"))


@contextmanager
def _pillow_limit(max_pixels: int | None) -> Iterator[None]:
    """Pillow's limit is the whole process's: it is lifted while a file is read that may be larger, and only then."""
    if max_pixels is not None and max_pixels <= MAX_PIXELS:
        yield
        return
    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_size(image: Image.Image, max_pixels: int | None, name: str) -> None:
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise InputError(
            f"{name} is {image.height} high and {image.width} wide, {image.width * image.height} pixels; allowed are "
            f"max_pixels = {max_pixels}"
        )


def _check_tiff(image: Image.Image, name: str) -> None:
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    formats, extra = tags.get(_SAMPLE_FORMAT, (1,)), tags.get(_EXTRA_SAMPLES, ())
    if tags.get(_PLANES, 1) == 2 and max(tags.get(_BITS, (8,))) > 8 and tags.get(_COMPRESSION, 1) == 1:
        raise InputError(
            f"{name} has 16-bit colours in separate planes, which Pillow reads wrongly; save it interleaved"
        )
    if 0 in extra:
        raise InputError(
            f"{name} has {len(tags.get(_BITS, ()))} bands, of which some are neither colour nor transparency"
        )
    if 2 in formats and image.mode == "L":  # which Pillow reads as if it had no sign
        raise InputError(f"{name} has 8-bit integers with a sign; allowed are those without")


def _eight_bits(values: np.ndarray, image: Image.Image, name: str) -> np.ndarray:
    tags = getattr(image, "tag_v2", {})
    bits, signed = max(tags.get(_BITS, (16,))), 2 in tags.get(_SAMPLE_FORMAT, (1,))
    if image.mode == "F":
        white = 1.0
        hint = "scale them to 0 (black) to 1 (white)"
    elif bits > 16 or (image.mode == "I" and image.format not in ("PNG", "PPM", "TIFF", None)):
        raise InputError(f"{name} has integers of 32 bits, of which none is known to be white; save it with 8 or 16")
    else:
        white = float(2 ** (bits - signed) - 1)
        hint = "shift and scale them"
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):  # not `<` and `>`: NaN must be caught too
        raise InputError(f"{name} has values from {low:g} to {high:g}, allowed are 0 to {white:g}; {hint}")
    if white == 2**16 - 1 and 0 < high < 2**12 and tags.get(_PHOTOMETRIC) != 0 and not _told_of_few_bits:
        _told_of_few_bits.append(name)
        warnings.warn(
            f"{name} has 16 bits and no value above {high:g} of 65535, so it is read as almost black; if its camera "
            "has 10 or 12 bits, multiply the values to the full range first. Other images like it are not named",
            stacklevel=3,
        )
    scaled = np.rint(values * (255 / white))
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white; Pillow turns only 8 bits round
        scaled = 255 - scaled
    return scaled.astype(np.uint8)
