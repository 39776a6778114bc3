"""Where the COCO JSON files of a data set are, and their images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from softmaxfree.data.split_names import SIDES
from softmaxfree.errors import InputError
from softmaxfree.images import is_hidden, natural_key
from softmaxfree.printing import few

__all__ = ["CocoFiles", "find_coco", "is_coco"]

_ROBOFLOW = "_annotations.coco.json"
_SECTIONS = (b'"images"', b'"annotations"', b'"categories"')


class CocoFiles(NamedTuple):
    """A JSON file and where its images may be.

    Attributes:
        json: the file.
        folders: of which the one that has most of the images is meant, or of several the first.
        others: folders of any name, one of which is meant where it has more.
    """

    json: Path
    folders: tuple[Path, ...]
    others: tuple[Path, ...] = ()


def find_coco(
    root: Path | None,
    train_json: Path | None,
    val_json: Path | None,
    train_images: Path | None,
    val_images: Path | None,
) -> dict[str, CocoFiles]:
    """Find the files of each split.

    Args:
        root: folder of the data; of the images, where JSON files are given.
        train_json: given file.
        val_json: given file.
        train_images: given folder of images.
        val_images: given folder of images.

    Returns:
        By split. A single file, of which a part is to validate, has the key "".

    Raises:
        FileNotFoundError: a folder is not there.
        InputError: there is no JSON file, or more than can be told apart.
    """
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {root}")
    given = {"train": (train_json, train_images), "val": (val_json, val_images)}
    for split, (json, images) in given.items():
        if images is not None and json is None:
            raise InputError(f"data.{split}_images is the folder of data.{split}_json, which is missing")
        if images is not None and not images.is_dir():
            raise FileNotFoundError(f"data.{split}_images: there is no folder {images}")
        if json is not None and not json.is_file():
            raise FileNotFoundError(f"data.{split}_json: there is no file {json}")
    files = {
        split: CocoFiles(json, (images,)) if images else _near(json, root, split)
        for split, (json, images) in given.items()
        if json is not None
    }
    if files:
        return {"": files["train"]} if files.keys() == {"train"} else files
    if root is None:
        raise InputError("data.root or data.train_json is needed: a folder with a COCO JSON file, or the file")
    return _in_folder(root)


def is_coco(path: Path) -> bool:
    """Return whether a JSON file has the sections of a COCO file."""
    content = path.read_bytes()
    return all(section in content for section in _SECTIONS)


def _in_folder(root: Path) -> dict[str, CocoFiles]:
    coco = {split: root / "annotations" / f"instances_{split}2017.json" for split in ("train", "val")}
    candidates = _candidates(root)
    folders = {split: _roboflow(root, names) for split, names in SIDES.items()}
    roboflow = {split: CocoFiles(path, (path.parent,)) for split, path in folders.items() if path}
    if any(path.is_file() for path in coco.values()) or (not candidates and not roboflow):
        if not (root / "annotations").is_dir() and not any((root / f"{split}2017").is_dir() for split in coco):
            raise InputError(
                f"data.root: {root} has no COCO JSON file, nor have annotations, train or valid in it; "
                "data.train_json names one"
            )
        return {split: CocoFiles(path, (root / f"{split}2017",)) for split, path in coco.items()}
    if roboflow and not candidates:
        return {"": roboflow["train"]} if roboflow.keys() == {"train"} else roboflow
    by_split = {
        split: [path for path in candidates if any(name in path.stem.lower() for name in names)]
        for split, names in SIDES.items()
    }
    if len(candidates) == 1 and not roboflow:
        return {"": _near(candidates[0], root, "train")}
    if len(candidates) == 2 and all(len(paths) == 1 for paths in by_split.values()) and not roboflow:
        return {split: _near(path, root, split) for split, (path,) in by_split.items()}
    named = [str(path) for path in (*candidates, *(files.json for files in roboflow.values()))]
    raise InputError(
        f"data.root: {root} has {len(named)} COCO JSON files: {few(named, 6)}; say which with "
        "data.train_json and data.val_json"
    )


def _roboflow(root: Path, names: Sequence[str]) -> Path | None:
    there = {path.name.lower(): path for path in root.iterdir()}
    files = (there[name] / _ROBOFLOW for name in names if name in there)
    return next((path for path in files if path.is_file()), None)


def _candidates(root: Path) -> list[Path]:
    """The COCO files in the folder and in `annotations`; other JSON files hold other things."""
    there = [path for folder in (root, root / "annotations") if folder.is_dir() for path in folder.iterdir()]
    files = [path for path in there if path.suffix.lower() == ".json" and path.is_file() and not is_hidden(path.name)]
    files.sort(key=lambda path: natural_key(path.as_posix()))
    return [path for path in files if is_coco(path)] or files[:1]


def _near(json: Path, root: Path | None, split: str) -> CocoFiles:
    """A file with the folders in which its images are looked for."""
    around = [root] if root is not None else []
    around += [json.parent] if root is None or json.parent.name.lower() != "annotations" else []
    around += [json.parent.parent] if json.parent.name.lower() == "annotations" else []
    names = ("images", *SIDES[split], f"{split}2017")
    inner = [folder / name for folder in around for name in names]
    inner += [folder / "images" / name for folder in around for name in SIDES[split]]
    known = tuple(dict.fromkeys((*around, *(folder for folder in inner if folder.is_dir()))))
    there = [path for folder in around for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
    others = dict.fromkeys(path for path in there if path.is_dir() and path not in known)
    return CocoFiles(json, known, tuple(others))
