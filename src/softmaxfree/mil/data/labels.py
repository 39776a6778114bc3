"""Labels of slides: a table in CSV, with cases where it tells them."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from softmaxfree.data.class_tables import read_table
from softmaxfree.errors import InputError
from softmaxfree.images import natural_key
from softmaxfree.mil.data.slides import IDS, MISSING, slide_id

__all__ = ["Labels", "bins_of", "class_labels", "read_labels", "survival_labels"]

_CASES = ("case_id", "case", "patient_id", "patient")
_EVENTS = ("event", "status")
_CENSORED = ("censorship", "censored")  # 1 where the event was not seen
_TIMES = ("time", "survival_months", "survival_days")


@dataclass(frozen=True)
class Labels:
    """What a table says of slides, as text.

    Attributes:
        path: of the table.
        cases: of each slide; a slide is its own case where the table tells none.
        values: of each slide: its class; of survival time and event.
    """

    path: Path
    cases: dict[str, str]
    values: dict[str, tuple[str, ...]]

    @property
    def by_case(self) -> bool:
        """Whether a case has several slides."""
        return len(set(self.cases.values())) < len(self.cases)


def read_labels(path: Path, column: str | None, survival: bool) -> Labels:
    """Read the table.

    Args:
        path: CSV file with a head. A column tells the slide (`slide_id`), one, if wanted, the case (`case_id`), and one
            the class, or two time and event.
        column: of the class; None is `label`.
        survival: whether time and event are read in place of a class.

    Returns:
        The labels; names of slides are text, without the suffix of a file.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: a column is missing, a slide is there twice or has no label; that names slide and file.
    """
    head, rows = read_table(path, "data.labels")
    at = _column(path, head, IDS, "the slide")
    case_at = _column(path, head, _CASES, "the case", required=False)
    if survival:
        wanted = [_column(path, head, _TIMES, "the time"), _column(path, head, (*_EVENTS, *_CENSORED), "the event")]
        negated = head[wanted[1] or 0].lower() in _CENSORED
        lower = [name.lower() for name in head]
        if len(both := [name for name in (*_EVENTS, *_CENSORED) if name in lower]) > 1:
            raise InputError(f"data.labels: {path} has {' and '.join(both)}, which may differ: leave one of them out")
    else:
        wanted, negated = [_column(path, head, (column or "label",), "the class")], False
    cases: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        name = slide_id(row[at or 0])
        if not name:
            raise InputError(f"data.labels: {path} has no slide in line {line}")
        if name in values:
            raise InputError(f"data.labels: {path} lists slide {name} twice, in lines {lines[name]} and {line}")
        told = tuple(row[i].strip() for i in wanted if i is not None)
        if not all(told) or any(text.lower() in MISSING for text in told):
            raise InputError(f"data.labels: {path} has no label of slide {name}, in line {line}: {', '.join(told)!r}")
        if negated:
            told = (told[0], str(1 - _event(told[1], name, path)))
        lines[name], values[name] = line, told
        case = row[case_at].strip() if case_at is not None else ""
        cases[name] = name if case.lower() in ("", *MISSING) else case
    _refuse_twins(path, "cases", set(cases.values()))
    if not survival:
        _refuse_twins(path, "classes", {told[0] for told in values.values()})
    return Labels(path, cases, values)


def _refuse_twins(path: Path, what: str, names: set[str]) -> None:
    """Refuse 1 beside 1.0, as a spreadsheet writes a column that has gaps somewhere."""
    for name in names:
        whole = name.removesuffix(".0")
        if whole != name and whole in names and whole.isdecimal():
            raise InputError(f"data.labels: {path}: the {what} {whole} and {name} are one number, written in two ways")


def class_labels(
    labels: Labels, names: Sequence[str], known: Sequence[str], order: Sequence[str] | None = None
) -> tuple[list[str], dict[str, Tensor]]:
    """Number the classes.

    Args:
        labels: of all slides.
        names: slides that are used.
        known: classes of weights that are there, which may be more.
        order: all classes in the order that they are to have; None is the natural order.

    Returns:
        The classes in order, and the label of each slide, () int64.

    Raises:
        InputError: there is one class alone, two differ in their case alone, or one is not in the order.
    """
    there = sorted({labels.values[name][0] for name in names}, key=natural_key)
    for one, other in itertools.combinations(there, 2):
        if one.casefold() == other.casefold():
            raise InputError(f"data.labels: {labels.path}: the classes {one} and {other} differ in their case alone")
    classes = list(known) if set(there) <= set(known) else there
    if order is not None:
        if lacking := [name for name in there if name not in order]:
            raise InputError(f"data.classes: {labels.path} has the class {lacking[0]}, which is not in {list(order)}")
        classes = list(order)
    if len(classes) < 2:
        raise InputError(f"data.labels: {labels.path}: all slides are of one class, {classes[0]}; two are needed")
    return classes, {name: torch.tensor(classes.index(labels.values[name][0])) for name in names}


def survival_labels(labels: Labels, names: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Return time and event of slides.

    Args:
        labels: of all slides.
        names: slides that are used.

    Returns:
        Time, 0 or more, and 1 where the event was seen.

    Raises:
        InputError: one is no such number; that names slide and file.
    """
    told = {}
    for name in names:
        time, event = labels.values[name]
        try:
            value = float(time)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise InputError(
                f"data.labels: {labels.path}: the time of slide {name} must be a number, 0 or more; got {time!r}"
            )
        told[name] = (value, _event(event, name, labels.path))
    return told


def bins_of(told: Sequence[tuple[float, int]], bins: int) -> list[float]:
    """Return where one bin of time ends and the next begins: quantiles of the times of events (Zadeh & Schmid, 2021).

    Args:
        told: time and event of the slides that are trained on.
        bins: how many.

    Returns:
        `bins - 1` times, ascending.

    Raises:
        InputError: there are too few different times of events.
    """
    seen = [time for time, event in told if event]
    cuts = np.quantile(seen, np.arange(1, bins) / bins).tolist() if seen else []
    if len(set(cuts)) < bins - 1:
        times = len(set(seen))
        raise InputError(
            f"data.bins is {bins}, but the events of the slides to train on are at {times} different "
            f"time{'s' * (times != 1)}, which are too few or too unequal for as many bins"
        )
    return cuts


def _event(text: str, slide: str, path: Path) -> int:
    try:
        value = float({"true": "1", "false": "0"}.get(text.lower(), text))
    except ValueError:
        value = math.nan
    if value not in (0, 1):
        raise InputError(f"data.labels: {path}: the event of slide {slide} must be 0 or 1, got {text!r}")
    return int(value)


def _column(path: Path, head: Sequence[str], names: Sequence[str], what: str, required: bool = True) -> int | None:
    lower = [name.lower() for name in head]
    for name in names:
        if name.lower() in lower:
            return lower.index(name.lower())
    if not required:
        return None
    raise InputError(f"data.labels: {path} has no column for {what}: {' or '.join(names)}; it has {', '.join(head)}")
