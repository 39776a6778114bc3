"""From files to training and validation images with one numbering of their classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from timm.data.readers.class_map import load_class_map

from softmaxfree.data.class_folders import Listing
from softmaxfree.data.class_tables import check_labels, list_table
from softmaxfree.data.images import warn_left_out
from softmaxfree.data.kinds import hinting_at_kind, kind_hint
from softmaxfree.data.mask_folders import holds_masks
from softmaxfree.data.splits import EVERY, draw_split, read_split, val_share
from softmaxfree.data.splitting import list_folder
from softmaxfree.data.telling import MOST_COMPARED, contradictions, equal_images, similar_names
from softmaxfree.errors import InputError
from softmaxfree.images import natural_key
from softmaxfree.printing import few, printable

__all__ = ["LabelledSplits", "find_splits"]

_SHOWN = 5  # classes in one message
_LONGEST = 40  # characters of a class in one message


@dataclass(frozen=True)
class LabelledSplits:
    """Images of both splits.

    Attributes:
        listings: the images of "train" and "val".
        class_to_idx: label of each class, the same for both.
        rows: file, relative to the root, and split, where the images were split here; else empty.
        found: in one line what there is.
        remarks: what was warned of.
        shared: validation images that are training images too.
    """

    listings: dict[str, Listing]
    class_to_idx: dict[str, int]
    rows: list[tuple[str, str]]
    found: str
    remarks: list[str]
    shared: int

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Training images of each class."""
        counts = Counter(self.listings["train"].classes)
        return tuple(counts[name] for name in self.class_to_idx)


def find_splits(
    root: str | None,
    train_csv: str | None,
    val_csv: str | None,
    split: str | None,
    seed: int,
    class_map: Any = None,
    known_classes: Sequence[str] = (),
) -> LabelledSplits:
    """Find training and validation images.

    Args:
        root: folder, tar file or table.
        train_csv: table of the training images, or of all.
        val_csv: table of the validation images.
        split: table of which image is in which split.
        seed: of the drawing of images that are held out.
        class_map: labels by class, or a text file with a class a line; None numbers the classes in natural order.
        known_classes: by which images of some of these classes are numbered, where there is no class map.

    Returns:
        What was found.

    Raises:
        InputError: there are no images, they have fewer than two classes, or a class is only in "val".
        FileNotFoundError: there is no such folder or table.
    """
    listings, where, unused = _list(root, train_csv, val_csv)
    for place, left_out in {listing.root: listing.left_out for listing in listings.values()}.items():
        warn_left_out(place, left_out)
    listings, class_to_idx, remarks = _with_labels(listings, class_map, known_classes)
    if len(class_to_idx) < 2:
        raise InputError(_one_class(listings, where) + kind_hint(where, "classification"))
    parts = [f"not used: {unused}"] if unused else []
    rows: list[tuple[str, str]] = []
    how = f" (in {listings['val'].place.name})" if len({listing.place for listing in listings.values()}) > 1 else ""
    if "all" in listings:
        listings, rows, how = _divide(listings["all"], where, split, seed)
    elif split not in (None, EVERY):
        raise InputError(f"data.split: {where} has a training and a validation split of its own")
    unknown, shared = list[str](), 0
    if listings["train"].names or split != EVERY:
        unknown, shared = _check(listings, class_to_idx, where, drawn=bool(rows))
    train, val = (len(listings[name].names) for name in ("train", "val"))
    parts.insert(0, f"{train} to train, {val} to validate{how}")
    if train + val > MOST_COMPARED:
        parts.append(f"not searched for equal files, as there are more than {MOST_COMPARED:,} images")
    classes = f"{len(class_to_idx)} classes ({_counted(listings, list(class_to_idx))})"
    found = printable(f"{where}: {train + val} images of {classes}; {'; '.join(parts)}")
    return LabelledSplits(listings, class_to_idx, rows, found, [*remarks, *unknown], shared)


def _list(root: str | None, train_csv: str | None, val_csv: str | None) -> tuple[dict[str, Listing], Path, str]:
    folder = Path(root).expanduser() if root is not None else None
    argument = "data.train_csv"
    if folder is not None and folder.is_file() and folder.suffix.lower() in (".csv", ".tsv", ".txt"):
        if train_csv:
            raise InputError(f"data.root: {folder} is a table, and data.train_csv is another; root is their folder")
        train_csv, folder, argument = str(folder), None, "data.root"
    if not train_csv:
        if val_csv:
            raise InputError("data.val_csv needs data.train_csv")
        assert folder is not None
        with hinting_at_kind(folder, "classification"):
            listings, unused = list_folder(folder)
        _require_classes(listings, folder)
        return listings, folder, unused
    table = Path(train_csv).expanduser()
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"data.root: there is no folder {folder}")
    listings, unused = list_table(table, folder or table.parent, argument)
    if not val_csv:
        return listings, table, unused
    second = Path(val_csv).expanduser()
    of_val, more = list_table(second, folder or second.parent, "data.val_csv")
    for listed, name, path in ((listings, "train_csv", table), (of_val, "val_csv", second)):
        if listed.keys() != {"all"}:
            raise InputError(f"data.{name}: {path} has a column of splits; with data.val_csv neither table may")
    check_labels(listings["all"], of_val["all"])
    return {"train": listings["all"], "val": of_val["all"]}, table, ", ".join(filter(None, (unused, more)))


def _require_classes(listings: dict[str, Listing], folder: Path) -> None:
    """Images and their masks would be trained on as two classes."""
    names = {name for listing in listings.values() for name in listing.classes}
    if len(names) == 2 and folder.is_dir() and holds_masks(folder):
        raise InputError(
            f"data.root: {folder} holds images and masks of equal names ({' and '.join(sorted(names))}), not folders "
            f"of classes; such data is for `softmaxfree train segmentation`"
        )


def _with_labels(
    listings: dict[str, Listing], class_map: Any, known_classes: Sequence[str]
) -> tuple[dict[str, Listing], dict[str, int], list[str]]:
    """The listings with their labels, and what was warned of."""
    if not class_map:
        names = sorted({name for listing in listings.values() for name in listing.classes}, key=natural_key)
        if not set(names) <= set(known_classes):
            return listings, {name: i for i, name in enumerate(names)}, []
        remarks = []
        if absent := [name for name in known_classes if name not in names]:
            root = next(iter(listings.values())).root
            remarks.append(f"{root}: there are no images of {_named(absent)}, which the model knows")
            rank_zero_warn(remarks[-1])
        return listings, {name: i for i, name in enumerate(known_classes)}, remarks
    root = next(iter(listings.values())).root
    try:
        class_to_idx = load_class_map(class_map, str(root))
    except (AssertionError, ValueError) as error:  # timm's for a file that is not there or of another kind
        raise InputError(f"data.source_args.class_map: {error}") from error
    if sorted(class_to_idx.values()) != list(range(len(class_to_idx))):
        count = len(class_to_idx)
        raise InputError(f"data.source_args.class_map must number {count} classes from 0 to {count - 1}")
    kept, remarks = {}, []
    for split, listing in listings.items():
        keep = [i for i, name in enumerate(listing.classes) if name in class_to_idx]
        if left := len(listing.classes) - len(keep):
            warn_left_out(listing.root, Counter({"of no class in class_map": left}))
        kept[split] = listing.select(keep)
    present = {name for listing in kept.values() for name in listing.classes}
    if absent := [name for name in class_to_idx if name not in present]:
        if not present:
            raise InputError(f"data.source_args.class_map: {root} has images of none of its classes, {_named(absent)}")
        remarks.append(f"{root}: there are no images of {_named(absent)}, of data.source_args.class_map")
        rank_zero_warn(remarks[-1])
    return kept, dict(sorted(class_to_idx.items(), key=lambda item: item[1])), remarks


def _divide(
    listing: Listing, where: Path, split: str | None, seed: int
) -> tuple[dict[str, Listing], list[tuple[str, str]], str]:
    """The listing in two, the split of each file below the root, and in words how."""
    base = where if where.is_dir() else listing.root
    prefix = "" if listing.root == base else f"{listing.root.relative_to(base).as_posix()}/"
    names = [prefix + name for name in listing.names]
    if split:
        sides, how = read_split(split, names), f" (by {split})"
        held = [i for i, name in enumerate(names) if sides[name] == "val"]
    else:
        if max(Counter(listing.classes).values()) < 2:
            raise InputError(f"{where}: no class has two images, so none can be held out to validate")
        order = sorted(range(len(names)), key=lambda i: natural_key(names[i]))  # a table has an order of its own
        drawn = draw_split([[listing.classes[i]] for i in order], seed)
        held = sorted(i for i, validates in zip(order, drawn, strict=True) if validates)
        how = f" ({100 * val_share(len(names)):.3g} % of all, drawn by class and seed {seed})"
    val = set(held)
    rows = [(name, "val" if i in val else "train") for i, name in enumerate(names)]
    listings = {"train": listing.select([i for i in range(len(names)) if i not in val]), "val": listing.select(held)}
    return listings, ([] if split else rows), how


def _check(
    listings: dict[str, Listing], class_to_idx: dict[str, int], where: Path, drawn: bool
) -> tuple[list[str], int]:
    """Compare the splits with each other: their classes, and how many images they share; also what was warned of."""
    remarks = []
    train, val = (listings[split] for split in ("train", "val"))
    counts = {split: Counter(listing.classes) for split, listing in listings.items()}
    for split, name in (("train", "train on"), ("val", "validate")):
        if not counts[split]:
            raise InputError(f"{where}: there are no images to {name}")
    only = {
        split: sorted(counts[split].keys() - counts[other].keys(), key=natural_key)
        for split, other in (("train", "val"), ("val", "train"))
    }
    if only["val"]:
        told = "; ".join(f"only in {split}: {_named(names)}" for split, names in only.items() if names)
        raise InputError(f"{where}: the classes of the splits differ: {told}; a class needs images to train on")
    if missing := only["train"]:
        why = "one image, which is trained on" if drawn else "no images in the validation split"
        has, score = ("has", "its score is") if len(missing) == 1 else ("have", "their scores are")
        remarks.append(f"{where}: {_named(missing)} {has} {why}: {score} not known")
    shared, equal = equal_images(train, val)
    if shared:
        remarks.append(f"{where}: {equal}")
    for told in (contradictions([train, val]), similar_names(class_to_idx)):
        remarks += [f"{where}: {told}"] if told else []
    for remark in remarks:
        rank_zero_warn(remark)
    return remarks, shared


def _counted(listings: dict[str, Listing], names: Sequence[str]) -> str:
    """The images of the first classes."""
    counts = Counter(name for listing in listings.values() for name in listing.classes)
    if len({counts[name] for name in names}) == 1:
        return f"{counts[names[0]]} each: {_named(names)}"
    return _named(names, counts)


def _named(names: Sequence[str], counts: dict[str, int] | None = None) -> str:
    return few([f"{_short(name)} {counts[name]}" if counts else _short(name) for name in names], _SHOWN)


def _short(name: str) -> str:
    return printable(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}...")


def _one_class(listings: dict[str, Listing], where: Path) -> str:
    listing = next(iter(listings.values()))
    name = listing.classes[0]
    message = f"{where}: all images are of one class, {_short(name)}; a classifier needs two"
    begin = (Path(listing.folder) / name).as_posix() + "/"
    inner = {file.removeprefix(begin).split("/")[0] for file in listing.names if file.count("/") > begin.count("/")}
    if len(inner) < 2 or where.is_file() != (listing.parts is not None):  # a table has classes of its own
        return message
    if listing.parts is None and len(listings) == 1:
        return f"{message}; if its folders are the classes, data.root is {listing.place / name}"
    return f"{message}; if its folders are the classes, put them into {listing.place} itself, without {_short(name)}"
