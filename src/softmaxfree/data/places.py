"""Arguments of data modules that say where data is."""

from pathlib import Path
from typing import Any

__all__ = ["PLACES", "same_place"]

PLACES = (  # not part of weights
    "root", "split", "classes", "train_csv", "val_csv", "train_json", "val_json", "train_images", "val_images",
    "features", "labels", "coords",
)  # fmt: skip


def same_place(one: Any, other: Any) -> bool:
    """Return whether two values of a recipe name one file or folder.

    Args:
        one: a path, or None.
        other: a path, or None.

    Returns:
        Whether they do.
    """
    if one is None or other is None:
        return one is other
    return Path(str(one)).expanduser().resolve() == Path(str(other)).expanduser().resolve()
