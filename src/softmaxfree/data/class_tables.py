"""Tables of images and their classes: CSV files."""

import csv
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from softmaxfree.data.class_folders import Listing
from softmaxfree.data.split_names import SPLIT_NAMES
from softmaxfree.errors import InputError

__all__ = ["check_labels", "list_table", "read_table", "real_paths"]

_COLUMNS = {"image": ("image", "file", "filename", "path"), "label": ("label", "class", "target"), "split": ("split",)}
_SHOWN = 5  # files in one message


def list_table(path: Path, root: Path, argument: str) -> tuple[dict[str, Listing], str]:
    """List the images of a table.

    Args:
        path: a CSV file with a head. Its columns are `image` (or `file`, `filename`, `path`), `label` (or `class`,
            `target`) and, if wanted, `split`, in any order and case.
        root: folder of the images.
        argument: where the path was given, for messages.

    Returns:
        The images, in the order of the table, by split: "train" and "val", or "all" where the table has no splits; and
        what of the table was not used, empty if nothing.

    Raises:
        InputError: a column, an image or a label is missing, or an image has two labels.
        FileNotFoundError: there is no such file.
    """
    head, rows = read_table(path, argument)
    columns = {key: _column(key, names, head, path, argument) for key, names in _COLUMNS.items()}
    images, labels = ([row[columns[key]].strip() for _, row in rows] for key in ("image", "label"))  # type: ignore[index]
    for key, values in (("image", images), ("label", labels)):
        if empty := [line for (line, _), value in zip(rows, values, strict=True) if not value]:
            raise InputError(f"{argument}: {path} has no {key} in {_lines(empty)}")
    base = os.path.join(os.path.abspath(root), "")
    images = [_existing(base, name) for name in images]
    if missing := list(dict.fromkeys(name for name in images if not os.path.isfile(os.path.join(base, name)))):
        raise InputError(
            f"{argument}: {path} names {len(set(images))} images, of which {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not in {root}: {', '.join(missing[:_SHOWN])}"
            f"{', ...' if len(missing) > _SHOWN else ''}; give their folder as data.root, or take such rows out"
        )
    images = _one_name(root, images)
    splits = ["all"] * len(rows)
    if columns["split"] is not None:
        splits = [_split(row[columns["split"]], line, path, argument) for line, row in rows]
    told = _unused(head, columns, splits)
    label_of: dict[str, str] = {}
    chosen: dict[str, dict[str, str]] = {}
    for name, label, split in zip(images, labels, splits, strict=True):
        if label_of.setdefault(name, label) != label:
            wrong = f"{name} is both {label_of[name]!r} and {label!r}"
            raise InputError(f"{argument}: {path} has rows that contradict each other: {wrong}")
        chosen.setdefault(split, {})[name] = label
    if repeated := len(rows) - sum(map(len, chosen.values())):
        told.append(f"{repeated} repeated row{'s' if repeated > 1 else ''}")
    own = "val" if argument == "data.val_csv" else "train"
    if "val" not in chosen and "test" in chosen and (own == "val" or "train" in chosen):
        chosen["val"] = chosen.pop("test")
    if own == "train" and not chosen.keys() & {"all", "train"}:
        raise InputError(f"{argument}: {path} has no row of the split train, only of {' and '.join(chosen)}")
    chosen.pop("test", None)
    if chosen.keys() == {own}:
        chosen = {"all": chosen[own]}
    order: tuple[str, ...] = ("all", "train", "val")
    listings = {
        split: Listing(root, list(chosen[split]), list(chosen[split].values()), Counter())
        for split in order
        if split in chosen
    }
    return listings, ", ".join(told)


def read_table(path: Path, argument: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file whose columns are parted by commas, semicolons, tabs or `|`.

    Args:
        path: of the file, in UTF-8.
        argument: where the path was given, for messages.

    Returns:
        The head; and of each row that is not empty the line on which it ends, and its values.

    Raises:
        InputError: the file is no such table.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: there is no file {path}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t|", key=first.count), strict=True, skipinitialspace=True)
            rows = [(reader.line_num, row) for row in reader if any(value.strip() for value in row)]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{argument}: {path} is not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise InputError(f"{argument}: {path} is no CSV file: {error}") from error
    if len(rows) < 2:
        raise InputError(f"{argument}: {path} has no rows below its head")
    head = [name.strip() for name in rows[0][1]]
    if uneven := [line for line, row in rows if len(row) != len(head)]:
        raise InputError(f"{argument}: {path} has {len(head)} columns, but not in {_lines(uneven)}")
    return head, rows[1:]


def _column(key: str, names: tuple[str, ...], head: list[str], path: Path, argument: str) -> int | None:
    found = [i for i, name in enumerate(head) if name.lower() in names]
    if len(found) > 1:
        both = " and ".join(head[i] for i in found)
        raise InputError(f"{argument}: {path} has the columns {both}; only one may tell the {key}")
    if not found and key != "split":
        allowed = f"{', '.join(names[:-1])} or {names[-1]}"
        hint = "" if len(head) > 1 else "; columns are parted by commas, semicolons, tabs or |"
        raise InputError(f"{argument}: {path} has no column for the {key}: {allowed}; it has {', '.join(head)}{hint}")
    return found[0] if found else None


def _existing(base: str, name: str) -> str:
    """The name below the root, with the slashes of this system where that makes it a file."""
    if "\\" in name and not os.path.isfile(base + name):
        name = name.replace("\\", "/")
    path = os.path.join(base, name)
    plain = os.path.normpath(path)
    if ".." in name and os.path.isfile(path) and os.path.realpath(plain) != os.path.realpath(path):
        return name  # a link stands before `..`
    return plain.removeprefix(base).replace(os.sep, "/") if plain.startswith(base) else os.path.normpath(name)


def _one_name(root: Path, names: list[str]) -> list[str]:
    """The names, of which the first stands for all that lead to the same file."""
    first: dict[str, str] = {}
    return [first.setdefault(real, name) for name, real in zip(names, real_paths(root, names), strict=True)]


def real_paths(root: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the paths of files without links, by which one is told from another.

    Args:
        root: folder of the files.
        names: below the root.

    Yields:
        Absolute paths.
    """
    folder = functools.cache(os.path.realpath)  # which asks for each folder above
    for name in names:
        path = os.path.join(root, name)
        parent, last = os.path.split(path)
        yield os.path.realpath(path) if os.path.islink(path) else os.path.join(folder(parent), last)


def check_labels(train: Listing, val: Listing) -> None:
    """Refuse an image that two tables label differently.

    Args:
        train: images of the one table.
        val: images of the other.

    Raises:
        InputError: there is one.
    """
    labels = dict(zip(real_paths(train.root, train.names), train.classes, strict=True))
    for name, real, label in zip(val.names, real_paths(val.root, val.names), val.classes, strict=True):
        if (other := labels.get(real, label)) != label:
            raise InputError(
                f"data.val_csv contradicts data.train_csv: {val.root / name} is {label!r}, and {other!r} there"
            )


def _split(value: str, line: int, path: Path, argument: str) -> str:
    for split, names in SPLIT_NAMES.items():
        if value.strip().lower() in names:
            return split
    allowed = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
    raise InputError(f"{argument}: {path}, line {line}: the split is {value!r}; allowed are {allowed}")


def _unused(head: list[str], columns: dict[str, int | None], splits: list[str]) -> list[str]:
    told = []
    if others := [name or "without a name" for i, name in enumerate(head) if i not in columns.values()]:
        told.append(f"column{'s' if len(others) > 1 else ''} {', '.join(others)}")
    if "val" in splits and (tests := splits.count("test")):
        told.append(f"{tests} row{'s' if tests > 1 else ''} of the split test")
    return told


def _lines(lines: list[int]) -> str:
    more = f", ... ({len(lines)} lines)" if len(lines) > _SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:_SHOWN]))}{more}"
