"""A comparison: a list of trials, each a row or two of a table; what is in the tables is not done again."""

import csv
import dataclasses
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from softmaxfree.atomic import write_csv, write_json
from softmaxfree.compare.measures import PASSES, check_photograph, cost, facts, grid_of
from softmaxfree.compare.studies import Variant, variants
from softmaxfree.compare.training import RECIPES, NotBegun, check_options, train, validate
from softmaxfree.data.labelled import find_splits
from softmaxfree.errors import InputError
from softmaxfree.machine import describe

__all__ = ["TABLES", "Comparison", "compare", "read_settings", "read_table"]

SETTINGS = "settings.json"
TABLES = ("cost", "facts", "accuracy", "transfer")
"""Names of the CSV files of a comparison."""

_NUMBERS = ("score", "seconds", "guess", "validated", "milliseconds", "peak_mib", "tokens", "residual")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        mixers: names; none: all.
        study: of one mixer, a key of `STUDIES`.
        data: what networks are trained on, see `softmaxfree.compare.training`; none: nothing is trained.
        seeds: of the trainings.
        tokens: numbers of tokens at which time and memory are measured.
        sizes: image sizes, pixels, at which trained networks are validated again.
        options: further settings of the trainings, such as `trainer.max_epochs`.
        budget_minutes: after which no further trial is begun; None for no limit.
    """

    mixers: Sequence[str] = ()
    study: str | None = None
    data: Sequence[str] = ()
    seeds: Sequence[int] = (42, 43, 44)
    tokens: Sequence[int] = (196, 784, 3136, 12_544, 50_176)
    sizes: Sequence[int] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    budget_minutes: float | None = None

    @property
    def fixed(self) -> dict[str, Any]:
        """What all rows of a folder depend on; more mixers, data, seeds and tokens only add rows.

        Of the options only the trainings depend.
        """
        ways = {"study": self.study}
        if self.study:
            ways["mixers"] = ", ".join(dict.fromkeys(row.mixer for row in variants(self.mixers, self.study)))
        return {**ways, "options": dict(self.options), "threads": torch.get_num_threads()}


@dataclasses.dataclass(frozen=True)
class _Trial:
    table: str
    key: dict[str, str]  # columns that tell it from the others of its table
    run: Callable[[], list[dict[str, Any]]]
    told: dict[str, Any] = dataclasses.field(default_factory=dict)  # further columns
    code: str = ""  # digest of the mixer's file, where another package brings it
    images: str = ""  # digest of the files of a folder of images
    passes: frozenset[str] = frozenset()  # has a row for each

    @property
    def version(self) -> dict[str, str]:
        """Columns that tell what was measured from what may be there now."""
        return {key: value for key, value in (("code", self.code), ("images", self.images)) if value}

    def has(self, row: Mapping[str, Any]) -> bool:
        """Returns whether a row is this trial's."""
        return all(row.get(key) == value for key, value in self.key.items())

    def done(self, table: Sequence[Mapping[str, Any]]) -> bool:
        """Returns whether a table has all its rows, measured with the code and the images that there are now."""
        own = [row for row in table if self.has(row)]
        old = any(row.get("code", "") != self.code or row.get("images") not in (None, "", self.images) for row in own)
        whole = bool(own) and self.passes <= {row.get("what") for row in own}
        return whole and not old and not any(row.get("not_measured") for row in own)

    @property
    def kind(self) -> tuple[str, ...]:
        """Trials that take about as long."""
        return self.table, self.key.get("data", ""), self.key.get("asked", "")


def compare(comparison: Comparison, out: Path, photograph: np.ndarray) -> Iterator[str]:
    """Does what is missing in the tables of a folder, and tells of each trial in a line.

    A row is written as soon as it is there: a comparison that was stopped goes on where it was. What could not be
    measured is tried again, and so is what was measured of a mixer of another package whose file has changed since, or
    of a folder whose images have.

    Args:
        comparison: what to compare.
        out: folder of `cost.csv`, `facts.csv`, `accuracy.csv`, `transfer.csv`, and of the runs.
        photograph: `(height, width, 3)` uint8, on whose patches errors are measured.

    Yields:
        Lines.

    Raises:
        InputError: there is no such mixer, study, data or option, the photograph is too small, the folder holds another
            comparison, or trainings could not begin.
    """
    rows = variants(comparison.mixers, comparison.study)
    comparison = dataclasses.replace(comparison, data=_places(comparison.data))
    check_options(comparison.options, comparison.data)
    if "data.train_csv" not in comparison.options:
        _check_images(comparison.data, comparison.options)
    check_photograph(photograph)
    if comparison.sizes and not comparison.data:
        raise InputError("sizes needs data: it is trained networks that are validated at other sizes")
    _keep_settings(comparison, out, photograph)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield from _run(comparison, rows, out, photograph)
    except Timeout:
        raise InputError(f"out: another comparison writes to {out} now; wait for it, or give another folder") from None


def _run(comparison: Comparison, rows: Sequence[Variant], out: Path, photograph: np.ndarray) -> Iterator[str]:
    tables = {name: read_table(out, name) for name in TABLES}
    trials = [trial for trial in _trials(comparison, rows, out, photograph) if not trial.done(tables[trial.table])]
    again = sum(any(map(trial.has, tables[trial.table])) for trial in trials)
    if again:
        yield f"tried again, as not measured before, or with other code or images: {again} of {len(trials)} trials"
    about = describe(torch.device("cpu"))
    start = time.monotonic()
    seconds: dict[tuple[str, ...], list[float]] = {}
    not_begun: list[str] = []
    limit = (comparison.budget_minutes or float("inf")) * 60
    for i, trial in enumerate(trials):
        if time.monotonic() - start > limit:
            left = f"{len(trials) - i} trials are left after {comparison.budget_minutes:g} minutes"
            yield f"{left}; the same command goes on"
            break
        began = time.monotonic()
        try:
            found = trial.run()
        except NotBegun as error:
            not_begun.append(str(error))
            yield _line(trial, [{"not done": error}], _to_go(trials[i + 1 :], seconds))
            continue
        except Exception as error:
            if not (trial.code or isinstance(error, InputError | RuntimeError)):
                raise
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            found = [{"not_measured": f"{kind}{error}".partition("\n")[0]}]
        seconds.setdefault(trial.kind, []).append(time.monotonic() - began)
        kept = [row for row in tables[trial.table] if not trial.has(row)]
        told = trial.told | trial.version
        tables[trial.table] = kept + [{**trial.key, **told, "not_measured": "", **row, **about, **row} for row in found]
        _write(out / f"{trial.table}.csv", tables[trial.table])
        yield _line(trial, found, _to_go(trials[i + 1 :], seconds))
    if not_begun:
        count = f"{len(not_begun)} of {len(trials)} trials"
        raise InputError(f"not noted as done: {count}: {not_begun[0]}")


def read_table(out: Path, name: str) -> list[dict[str, Any]]:
    """Returns the rows of a table of a comparison; none where it is not begun."""
    path = out / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin it with a mark
        reader = csv.DictReader(file)
        rows = list(reader)
    if rows and not {"name", "device"} <= {*(reader.fieldnames or ())}:
        raise InputError(f"out: {path} has no columns name and device between commas; put it back or delete it")
    for number, row in enumerate(rows, 2):
        for key, value in row.items():
            if key is None or value is None:
                raise InputError(f"out: line {number} of {path} has other cells than columns; put it back or delete it")
            if key in _NUMBERS and value and not _is_number(value):
                raise InputError(f"out: {key} in line {number} of {path} must be a number, got {value!r}")
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _trials(comparison: Comparison, rows: Sequence[Variant], out: Path, photograph: np.ndarray) -> Iterator[_Trial]:
    for variant in rows:
        name = {"name": variant.label}
        yield _Trial("facts", name, partial(_facts, variant, photograph), code=variant.code)
    for tokens in dict.fromkeys(comparison.tokens):
        grid = grid_of(tokens)
        for variant in rows:
            key = {"name": variant.label, "asked": str(tokens)}
            told = {"tokens": math.prod(grid)}
            yield _Trial("cost", key, partial(cost, variant, grid), told, variant.code, passes=frozenset(PASSES))
    for data in comparison.data:
        images = _images_of(data)
        for seed in comparison.seeds:
            for variant in rows:
                key = {"name": variant.label, "data": data, "seed": str(seed)}
                label = "-".join(filter(None, (variant.label.replace(" ", "_"), variant.code)))
                folder = out / "runs" / _folder_of(data, images) / label / str(seed)
                training = partial(_train, variant, data, seed, folder, comparison.options)
                yield _Trial("accuracy", key, training, code=variant.code, images=images)
                for size in dict.fromkeys(comparison.sizes):
                    transfer = partial(_validate, folder, size)
                    sized = {**key, "img_size": str(size)}
                    yield _Trial("transfer", sized, transfer, code=variant.code, images=images)


def _places(data: Sequence[str]) -> list[str]:
    """What is trained on, folders by their whole paths."""
    places = list[str]()
    for name in data:
        path = Path(name).expanduser()
        if name not in RECIPES and not path.is_dir():
            raise InputError(f"data must be one of {', '.join(RECIPES)}, or a folder of images, got {name!r}")
        place = name if name in RECIPES else str(path.resolve())
        if place in places:
            raise InputError(f"data must be different ones, {place} is given twice")
        places.append(place)
    return places


def _check_images(places: Sequence[str], options: dict[str, Any]) -> None:
    """Refuses a folder that no training can use, before all else is measured."""
    csv, split, classes = (options.get(f"data.{name}") for name in ("val_csv", "split", "class_map"))
    for place in places:
        if place not in RECIPES:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # each training tells them
                    find_splits(place, None, csv, split, 0, classes)
            except InputError as error:
                raise InputError(f"data: {str(error).removeprefix('data.root: ')}") from error


def _images_of(data: str) -> str:
    """A digest of the names and sizes of all files of a folder, "" for embedded data."""
    if data in RECIPES:
        return ""
    files = sorted(path for path in Path(data).rglob("*") if path.is_file())
    listed = "\n".join(f"{path.relative_to(data).as_posix()} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _folder_of(data: str, images: str) -> str:
    """Where its runs are: folders of one name are told apart by a digest of their paths, and of what is in them."""
    digest = hashlib.sha256(f"{data} {images}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return data if data in RECIPES else f"{Path(data).name}-{digest}"


def _facts(variant: Variant, photograph: np.ndarray) -> list[dict[str, Any]]:
    return [facts(variant, photograph)]


def _train(*arguments: Any) -> list[dict[str, Any]]:
    return [train(*arguments)]


def _validate(folder: Path, size: int) -> list[dict[str, Any]]:
    return [validate(folder, size)]


def _keep_settings(comparison: Comparison, out: Path, photograph: np.ndarray) -> None:
    path = out / SETTINGS
    digest = hashlib.sha256(photograph.tobytes()).hexdigest()[:16]
    now = {**json.loads(json.dumps(comparison.fixed)), "image": digest}
    if path.is_file():
        there = {**now, **read_settings(out)}  # earlier versions kept less
        if not comparison.data:
            now["options"] = there.get("options", {})
        elif not _trained(out):
            there["options"] = now["options"]
        for key, value in now.items():
            if there.get(key) != value:
                raise InputError(
                    f"out: {out} holds a comparison with {key} {there.get(key)!r}, this one has {value!r}; "
                    "give another folder, or the same settings"
                )
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"out: {out} is neither empty nor a comparison; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def read_settings(out: Path) -> dict[str, Any]:
    """Returns what all rows of a comparison depend on, by name; nothing where it is not begun."""
    path = out / SETTINGS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"out: {path} is no JSON ({error}); give another folder") from error
    if not isinstance(found, dict):
        raise InputError(f"out: {path} must hold settings by name; give another folder")
    return found


def _trained(out: Path) -> bool:
    return bool(read_table(out, "accuracy")) or any(out.glob("runs/*/*/*/*/config.yaml"))


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    write_csv(path, [{**dict.fromkeys(columns, ""), **row} for row in rows])


def _to_go(trials: Sequence[_Trial], seconds: dict[tuple[str, ...], list[float]]) -> str:
    """How long the others take, as far as their kind was seen."""
    means = {kind: sum(times) / len(times) for kind, times in seconds.items()}
    known = [means[trial.kind] for trial in trials if trial.kind in means]
    total, unknown = sum(known), len(trials) - len(known)
    parts = [f"{total / 60:.0f} min" if total > 90 else f"{total:.0f} s"] if known else []
    parts += [f"{unknown} trial{'s' * (unknown > 1)} of unknown length"] if unknown else []
    return f"{' and '.join(parts)} to go" if trials else "the last one"


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def _line(trial: _Trial, found: Sequence[dict[str, Any]], to_go: str) -> str:
    what = ", ".join(trial.key.values())
    told = "; ".join(
        ", ".join(f"{key} {_short(value)}" for key, value in row.items() if value not in ("", None)) for row in found
    )
    return f"{trial.table:<9} {what}: {told} ({to_go})"
