"""Which task a folder is of, where it was given to another."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softmaxfree.data.coco_layout import is_coco
from softmaxfree.data.mask_folders import holds_masks
from softmaxfree.data.split_names import SIDES
from softmaxfree.errors import InputError
from softmaxfree.images import find_images, is_hidden

__all__ = ["hinting_at_kind", "kind_hint"]


@contextmanager
def hinting_at_kind(root: Path | None, task: str) -> Iterator[None]:
    """Let an error of a folder say of which other task it seems to be.

    Args:
        root: the folder, if one is given.
        task: that it was given to.

    Yields:
        Nothing.

    Raises:
        InputError: the error, with the hint.
    """
    try:
        yield
    except InputError as error:
        if root is None or not (hint := kind_hint(root, task)):
            raise
        raise InputError(f"{error}{hint}") from error


def kind_hint(root: Path, task: str) -> str:
    """Return what to add to an error; empty where a folder may be of the task, or of none that is known."""
    if not root.is_dir():
        return ""
    looks = {
        "segmentation": ("images and masks of equal names", holds_masks),
        "detection": ("a COCO JSON file", _has_coco),
        "classification": ("a folder of images for each class", _has_classes),
    }
    if looks[task][1](root):
        return ""
    for other, (what, holds) in looks.items():
        if other != task and holds(root):
            return f"; it holds {what}, which is for `softmaxfree train {other}`"
    return ""


def _has_coco(root: Path) -> bool:
    files = [*sorted(root.glob("*.json")), *sorted(root.glob("*/*.json"))]
    return any(is_coco(path) for path in files if path.is_file())


def _has_classes(root: Path) -> bool:
    splits = {name for names in SIDES.values() for name in names}
    around = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in splits] or [root]
    inner = [path for folder in around for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]
    return len({path.name for path in inner if find_images(path).files}) > 1
