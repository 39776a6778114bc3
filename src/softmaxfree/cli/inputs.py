"""The images that a command is given, and what becomes of those that cannot be used."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from softmaxfree.errors import InputError
from softmaxfree.images import IMAGE_SUFFIXES, find_images, tell_left_out

__all__ = ["find_images_of", "skip_or_fail", "tell"]


def find_images_of(files: Sequence[str]) -> tuple[list[Path], Counter[str]]:
    """Return the images that a command is given.

    Args:
        files: images, and folders that are searched for images.

    Returns:
        The images, and what else the folders hold.

    Raises:
        FileNotFoundError: there is no such file or folder.
        InputError: a folder holds no image.
    """
    found, left_out = [], Counter[str]()
    for path in map(Path, files):
        if path.is_dir():
            inside = find_images(path)
            if not inside.files:
                raise InputError(f"no images in {path}; looked for {' '.join(IMAGE_SUFFIXES)}")
            left_out += inside.left_out
            found += inside.files
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")
    return found, left_out


def skip_or_fail(path: Path, error: Exception, on_error: str, what: str = "image") -> None:
    """Tell that an input is left out; or raise InputError, which stops the command.

    Args:
        path: of the input.
        error: what is wrong with it.
        on_error: "skip" or "fail".
        what: the input is.

    Raises:
        InputError: for "fail".
    """
    why = str(error) if str(path) in str(error) else f"{path}: {error}"
    if on_error == "fail":
        raise InputError(f"unreadable {what}: {why}; --on-error skip leaves it out") from error
    tqdm.write(f"skipped: {why}", file=sys.stderr)


def tell(left_out: Counter[str]) -> None:
    """Print in one line what was left out, if anything was."""
    if left_out:
        print(tell_left_out(left_out), file=sys.stderr)
