"""What a command may write: names that never meet, no input, no file that it has not made."""

import itertools
import json
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from softmaxfree.errors import InputError
from softmaxfree.replacing import require_free

__all__ = [
    "LIST",
    "choose_folder",
    "common_folder",
    "is_ours",
    "mark",
    "name_outputs",
    "require_free",
    "without_earlier",
]

LIST = "predictions.json"
"""What lists the pictures of a folder."""

_FOLDER = "predictions"
_MARK = "softmaxfree predict"  # in each picture, so that a later run may replace it
_LONGEST_NAME = 255  # bytes, on all common file systems
_ROOM_FOR_NUMBER = 8


def choose_folder(out: str | Path | None, checkpoint: str, images: Iterable[Path]) -> Path:
    """Return the folder for pictures, in which none stay of other images or of another checkpoint.

    Args:
        out: the folder that is named; None takes `predictions`, or `predictions-2` and so on where that is taken.
        checkpoint: that draws them.
        images: of which pictures will be drawn.

    Returns:
        The folder. An earlier run of the same command takes the same.

    Raises:
        InputError: the folder that is named is taken.
    """
    known = {os.path.abspath(image) for image in images}
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"--out: {out} is a file; give a folder for the pictures")
    if out is None:
        names = itertools.chain([_FOLDER], (f"{_FOLDER}-{number}" for number in itertools.count(2)))
        return next(Path(name) for name in names if not _others(Path(name), checkpoint, known))
    if others := _others(Path(out), checkpoint, known):
        raise InputError(f"--out: {out} holds {others}, which would stay among the new; name another folder")
    return Path(out)


def _others(folder: Path, checkpoint: str, known: Collection[str]) -> str:
    """What a folder lists of others, in words; empty if nothing."""
    if not is_ours(folder / LIST):
        return ""
    for entry in json.loads((folder / LIST).read_text(encoding="utf-8")):
        if entry.get("checkpoint") != checkpoint:
            return f"predictions of {entry.get('checkpoint', 'an earlier version')}"
        if os.path.abspath(entry["file"]) not in known:
            return f"predictions of other images, such as {entry['file']}"
    return ""


def name_outputs(images: Iterable[Path], root: str | Path, endings: Sequence[str]) -> dict[Path, list[Path]]:
    """Name what is written of each image, in folders as those of the images.

    `photos/a/1.jpg` becomes `a/1.png`. Where that name is another's already, also on file systems that take `A` for
    `a`, the suffix stays (`a/1.jpg.png`), and then a number follows.

    Args:
        images: files, each once.
        root: the folder that becomes the folder of the outputs; it holds all images.
        endings: of the outputs of an image, such as ".png".

    Returns:
        Paths by image, relative, one each ending.
    """
    relative = {image: _beside_the_list(Path(os.path.relpath(image, root))) for image in images}
    taken = {_key(LIST), *(_key(parent) for path in relative.values() for parent in path.parents)}
    names = {}
    for image, path in relative.items():
        for stem in _stems(path, max(map(len, endings))):
            names[image] = [path.parent / f"{stem}{ending}" for ending in endings]
            keys = {_key(name) for name in names[image]}
            if not keys & taken:
                break
        taken |= keys
    return names


def common_folder(files: Iterable[str | Path]) -> Path:
    """Return the deepest folder that holds all of the files and folders; of one folder itself."""
    return Path(os.path.commonpath([os.path.abspath(f if os.path.isdir(f) else os.path.dirname(f)) for f in files]))


def mark() -> PngInfo:
    """Return what tells a picture of ours."""
    info = PngInfo()
    info.add_text("Software", _MARK)
    return info


def is_ours(path: Path) -> bool:
    """Tell whether a file is a picture with our mark, or a list of predictions."""
    try:
        if path.name == LIST:
            content = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(content, list) and all({"file", "predictions"} <= set(entry) for entry in content)
        with Image.open(path) as image:
            return image.info.get("Software") == _MARK
    except (OSError, ValueError, SyntaxError, TypeError):  # whatever another kind of file is to a decoder
        return False


def without_earlier(images: Iterable[Path], files: Iterable[str], folder: Path) -> list[Path]:
    """Leave out what an earlier run has drawn into `folder` where that lies among the images.

    Args:
        images: all that were found.
        files: what the user named; such an image stays.
        folder: of the outputs.

    Returns:
        The images that are left, each once.
    """
    named = {os.path.abspath(file) for file in files}
    inside = os.path.abspath(folder) + os.sep
    once = {os.path.abspath(image): image for image in images}
    return [image for path, image in once.items() if path in named or not path.startswith(inside) or not is_ours(image)]


def _beside_the_list(path: Path) -> Path:
    """A folder cannot be called like the list beside it."""
    first, *rest = path.parts
    return Path(f"{first}_", *rest) if rest and _key(first) == _key(LIST) else path


def _key(path: str | Path) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _stems(path: Path, ending: int) -> Iterator[str]:
    longest = _LONGEST_NAME - ending
    for name in (path.stem, path.name):
        yield name if len(os.fsencode(name)) <= longest else _cut(name, longest)
    for number in itertools.count(2):
        yield f"{_cut(path.name, longest - _ROOM_FOR_NUMBER)}-{number}"


def _cut(name: str, longest: int) -> str:
    return os.fsencode(name)[:longest].decode(errors="ignore")
