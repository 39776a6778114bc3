"""Which slides train, validate and test: files of CLAM and TransMIL, or drawn by case and seed."""

import csv
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from softmaxfree.data.splits import draw_split
from softmaxfree.errors import InputError
from softmaxfree.images import natural_key
from softmaxfree.mil.data.slides import IDS, MISSING, slide_id

__all__ = ["SPLITS", "Split", "check_split", "draw", "find_split", "read_split"]

SPLITS = ("train", "val", "test")

Split = dict[str, str]
"""The split of each slide."""

_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0", "")


def find_split(given: str, fold: int | None) -> Path:
    """Return the file of a split.

    Args:
        given: the file; or a folder with a file for each fold.
        fold: number of the fold; needed for a folder.

    Returns:
        The file.

    Raises:
        InputError: there is none.
    """
    path = Path(given).expanduser()
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"data.split: there is no file {path}")
        return path
    if fold is None:
        raise InputError(f"data.split: {path} is a folder: give data.fold, or the file of one fold")
    names = [f"splits_{fold}.csv", f"splits_{fold}_bool.csv", f"fold{fold}.csv"]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise InputError(f"data.split: {path} has none of {', '.join(names)}")


def read_split(path: Path) -> tuple[Split, dict[str, str]]:
    """Read a split.

    Args:
        path: CSV file: CLAM's `splits_0.csv` (columns train, val, test with slides) or `splits_0_bool.csv` (a row a
            slide), TransMIL's `fold0.csv` (with labels beside), or columns of slide and split.

    Returns:
        The split of each slide, and the labels where the file has them.

    Raises:
        InputError: it cannot be read, is none of these, or has a slide in two splits or twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            text = lines.read()
            mark = next((own for own in ";\t" if own in text.partition("\n")[0]), ",")
            rows = [
                ["" if cell.strip().lower() == "nan" else cell.strip() for cell in row]
                for row in csv.reader(text.splitlines(), delimiter=mark)
                if any(map(str.strip, row))
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.split: {path} cannot be read: {error}") from error
    head = [name.lower() for name in rows[0]] if rows else []
    columns = {split: head.index(split) for split in SPLITS if split in head}
    if "split" in head and len(head) > 1:
        at = head.index("split")
        own = next((head.index(name) for name in IDS if name in head), 1 if at == 0 else 0)
        listed = [(row[own], row[at].lower() if len(row) > at else "") for row in rows[1:] if len(row) > own]
    elif columns and _is_bool(rows, columns):
        own = next((head.index(name) for name in IDS if name in head), 0)
        listed = [
            (row[own], split)
            for row in rows[1:]
            for split, at in columns.items()
            if len(row) > at and row[at].lower() in _TRUE
        ]
    elif columns:
        listed = [(row[at], split) for split, at in columns.items() for row in rows[1:] if len(row) > at and row[at]]
    else:
        raise InputError(
            f"data.split: {path} must have the columns train, val and, if wanted, test; or slide_id and split; it has "
            f"{', '.join(head) or 'nothing'}"
        )
    split: Split = {}
    for given, side in listed:
        name = slide_id(given)
        if side not in SPLITS:
            raise InputError(f"data.split: {path}: slide {name} must be of train, val or test, got {side!r}")
        if name in split:
            both = f"in two splits, {split[name]} and {side}" if split[name] != side else f"twice in {side}"
            raise InputError(f"data.split: {path} has slide {name} {both}")
        split[name] = side
    return split, _labels(path, rows, head, columns)


def check_split(split: Mapping[str, str], cases: Mapping[str, str], where: str) -> None:
    """Refuse a split by which nothing can be trained or measured.

    Args:
        split: of each slide.
        cases: of each slide.
        where: the split is from, for messages.

    Raises:
        InputError: a case is in two splits, or a side is empty.
    """
    sides: dict[str, tuple[str, str]] = {}
    for name, side in split.items():
        case = cases.get(name, name)
        other, first = sides.setdefault(case, (side, name))
        if other != side:
            raise InputError(
                f"data.split: {where}: case {case} is in two splits: slide {first} in {other}, slide {name} in {side}"
            )
    counts = Counter(split.values())
    for side, what in (("train", "to train on"), ("val", "to validate")):
        if not counts[side]:
            raise InputError(f"data.split: {where} has no slides {what}")


def draw(
    cases: Mapping[str, str],
    strata: Mapping[str, str],
    seed: int,
    folds: int | None = None,
    fold: int | None = None,
) -> Split:
    """Draw a split, in which a case is on one side alone and each side has its share of each stratum.

    Args:
        cases: of each slide.
        strata: of each slide, such as its class.
        seed: of the draw; the folds of a seed have each case in one test split.
        folds: into how many parts the cases are divided, of which one tests and the rest trains and validates; None
            draws no test split.
        fold: which part tests, from 0.

    Returns:
        The split of each slide.

    Raises:
        InputError: there are fewer cases than folds, or two.
    """
    order = sorted(set(cases.values()), key=natural_key)
    own: dict[str, Counter[str]] = {case: Counter() for case in order}
    for name, case in cases.items():
        own[case][strata[name]] += 1
    least = max(folds or 0, 2)
    if len(order) < least:
        why = "to be divided into so many folds" if folds else "to train and to validate"
        raise InputError(
            f"data.{'folds' if folds else 'split'}: there are {len(order)} cases with features; {least} or more are "
            f"needed {why}"
        )
    test: Collection[str] = ()
    if folds is not None:
        test = _parts(order, own, folds, seed)[fold or 0]
    rest = [case for case in order if case not in test]
    drawn = draw_split([sorted(own[case]) for case in rest], seed)
    side = dict.fromkeys(test, "test") | {
        case: "val" if held else "train" for case, held in zip(rest, drawn, strict=True)
    }
    return {name: side[case] for name, case in cases.items()}


def _parts(order: list[str], own: Mapping[str, Counter[str]], folds: int, seed: int) -> list[set[str]]:
    """Cases in parts: of each stratum, in an order by chance, to the part that has the fewest of it."""
    rng = np.random.default_rng(seed)
    shuffled = [order[i] for i in rng.permutation(len(order))]
    main = {case: max(sorted(own[case]), key=lambda stratum: own[case][stratum]) for case in order}
    have = [Counter[str]() for _ in range(folds)]
    parts: list[set[str]] = [set() for _ in range(folds)]
    for case in sorted(shuffled, key=lambda case: (main[case], -sum(own[case].values()))):
        least = min(range(folds), key=lambda k: (have[k][main[case]], have[k].total(), k))
        parts[least].add(case)
        have[least].update(own[case])
    return parts


def _is_bool(rows: list[list[str]], columns: Mapping[str, int]) -> bool:
    cells = {row[at].lower() for row in rows[1:] for at in columns.values() if len(row) > at}
    return bool(cells - {""}) and cells <= {*_TRUE, *_FALSE} and 0 not in columns.values()


def _labels(path: Path, rows: list[list[str]], head: list[str], columns: Mapping[str, int]) -> dict[str, str]:
    labels = {}
    for split, at in columns.items():
        if f"{split}_label" not in head:
            continue
        told = head.index(f"{split}_label")
        for row in rows[1:]:
            if len(row) > max(at, told) and row[at]:
                name = slide_id(row[at])
                labels[name] = _whole(row[told])
                if labels[name].lower() in ("", *MISSING):
                    raise InputError(f"data.split: {path} has no label of slide {name}: {row[told]!r}")
    return labels


def _whole(text: str) -> str:
    """A number that pandas wrote as 1.0 beside empty cells, as it was."""
    return text.removesuffix(".0")
