"""`softmaxfree train --folds`: a run for each fold, and their mean and spread in one table."""

import csv
import json
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from softmaxfree.atomic import write_csv, write_json
from softmaxfree.cli.recipe import read_recipe
from softmaxfree.cli.table import print_table
from softmaxfree.errors import InputError
from softmaxfree.report.comparison import FOLDS
from softmaxfree.report.summary import SUMMARY
from softmaxfree_cli.keys import keys_of

__all__ = ["PREDICTIONS", "TABLE", "train_folds"]

TABLE = "folds.csv"
"""Its name in the folder of the folds: a row a fold, then the mean and the standard deviation."""

PREDICTIONS = "predictions.csv"
"""Its name in the folder of a run of bags: a row a bag; in that of the folds, those that were tested."""

_FREE = ("data.num_workers", "trainer.accelerator", "trainer.devices", "run.threads", "run.keep_memory")
_Train = Callable[[str, Sequence[str], Path | None, Path], Path]


def train_folds(
    recipe: str, overrides: Sequence[str], folds: int, folder: Path, resume: str | None, train: _Train
) -> Path:
    """Train a run for each fold; those that are finished stay, and one that was interrupted goes on.

    Args:
        recipe: whose data module has the keys `fold` and `folds`.
        overrides: `--section.key=value`.
        folds: how many.
        folder: of the runs of the recipe; the folds get the next folder `folds-N` in it.
        resume: folder of folds to go on with, or "last" for the newest; None begins anew.
        train: trains one run in one process: recipe, overrides, checkpoint to go on from or None, folder.

    Returns:
        The folder of the folds.

    Raises:
        FileNotFoundError: there are no folds to go on with.
        InputError: the data has no folds, their number is below 2, a fold has no file of its split, or those to go on
            with were begun with other settings.
    """
    given = _keys(recipe, overrides, folds)
    place, is_new = _place(folder, resume)
    _keep_settings(place, recipe, [*overrides, f"--folds={folds}"])
    for fold in range(folds):
        run_dir = place / str(fold)
        if (run_dir / SUMMARY).is_file():
            print(f"fold {fold} of {folds} is finished: {run_dir}", flush=True)
            continue
        print(f"fold {fold} of {folds}", flush=True)
        checkpoint = run_dir / "last.ckpt"
        run_dir.mkdir(exist_ok=True)
        try:
            train(
                recipe,
                [*overrides, *given, f"--data.fold={fold}"],
                checkpoint if checkpoint.exists() else None,
                run_dir,
            )
            if not (run_dir / SUMMARY).is_file():
                raise InputError(
                    f"fold {fold} left no scores in {run_dir}: --folds is of whole runs, without trainer.fast_dev_run"
                )
        finally:
            if not (run_dir / "config.yaml").is_file():  # it did not begin
                shutil.rmtree(run_dir, ignore_errors=True)
            if is_new and not any(path.is_dir() for path in place.iterdir()):
                shutil.rmtree(place)
    _tell(place, folds)
    return place


def _keys(recipe: str, overrides: Sequence[str], folds: int) -> list[str]:
    """The options that each fold has beside its number."""
    if folds < 2:
        raise InputError(f"--folds must be 2 or more, got {folds}")
    content = read_recipe(recipe)
    if not {"fold", "folds"} <= keys_of(content).get("data", {}).keys():
        raise InputError(f"--folds is for data with the keys data.fold and data.folds, such as bags; {recipe} has none")
    one = [] if any(option.startswith("--trainer.devices=") for option in overrides) else ["--trainer.devices=1"]
    data = {**(content.get("data") or {}), **dict(_data_option(option) for option in overrides)}
    if data.get("fold") is not None or data.get("folds") is not None:
        raise InputError("--folds sets data.fold and data.folds for each fold: leave these two out")
    split = data.get("split")
    if split is None:
        return [f"--data.folds={folds}", *one]
    if not Path(str(split)).expanduser().is_dir():
        raise InputError(
            f"--folds: data.split must be a folder with a file for each fold, such as splits_0.csv; got {split}"
        )
    from softmaxfree.mil.data.splits import find_split, read_split

    files = [find_split(str(split), fold) for fold in range(folds)]
    tested = ["test" in read_split(file)[0].values() for file in files]
    if len(set(tested)) > 1:
        raise InputError(
            f"--folds: {files[tested.index(True)]} has slides to test and {files[tested.index(False)]} has none: one "
            f"table is of tests in all folds, or in none"
        )
    return one


def _keep_settings(place: Path, recipe: str, options: Sequence[str]) -> None:
    """Note what all folds are trained with, or refuse what is other than noted."""
    given = dict(option.removeprefix("--").partition("=")[::2] for option in options)
    now = {"recipe": Path(recipe).stem, **{key: text for key, text in given.items() if key not in _FREE}}
    path = place / FOLDS
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        for key in sorted({*now, *there}):
            if now.get(key) != there.get(key):
                raise InputError(
                    f"--resume: the folds in {place} were begun with {key} {there.get(key, 'as in the recipe')}, this "
                    f"command has {now.get(key, 'it as in the recipe')}: one table is of one setting"
                )
        return
    write_json(path, now)


def _data_option(option: str) -> tuple[str, str]:
    key, _, value = option.removeprefix("--").partition("=")
    return key.removeprefix("data."), value


def _place(folder: Path, resume: str | None) -> tuple[Path, bool]:
    """The folder of the folds, and whether it is new."""
    numbered = (path for path in folder.glob("folds-*") if path.name[6:].isdigit())
    there = sorted(numbered, key=lambda path: int(path.name[6:]))
    if resume is None:
        return _new_place(folder, int(there[-1].name[6:]) + 1 if there else 0), True
    if resume != "last":
        place = Path(resume).expanduser()
    elif there:
        place = there[-1]
    else:
        raise FileNotFoundError(f"there are no folds in {folder} to resume")
    if not place.is_dir():
        raise FileNotFoundError(f"there is no folder {place} of folds to resume")
    if not (place / FOLDS).is_file():
        raise InputError(f"--resume: {place} is no folder of folds, which has {FOLDS}; with --folds give such a folder")
    return place, False


def _new_place(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):  # another command began at the same moment
            (place := folder / f"folds-{number}").mkdir()
            return place
        number += 1


def _tell(place: Path, folds: int) -> None:
    summaries = [json.loads((place / str(fold) / SUMMARY).read_text(encoding="utf-8")) for fold in range(folds)]
    labels = {name: label for summary in summaries for name, label in summary["labels"].items()}
    metrics = [summary["metrics"] for summary in summaries]
    tested = any(name.startswith("test/") for own in metrics for name in own)
    there = {name for own in metrics for name in own}
    names = [name for name in labels if name.startswith("test/" if tested else "val/") and name in there]
    rows: list[dict[str, Any]] = [
        {"fold": fold, **{name: own.get(name) for name in names}} for fold, own in enumerate(metrics)
    ]
    known = {name: [row[name] for row in rows if row[name] is not None] for name in names}
    for what, function in (("mean", statistics.mean), ("sd", statistics.stdev)):
        rows.append({"fold": what, **{n: function(v) if len(v) > 1 else None for n, v in known.items()}})
    write_csv(place / TABLE, rows)
    lines = []
    for row in rows:
        cells = [(row[name], labels[name]) for name in names]
        lines.append([str(row["fold"]), *("" if v is None else f"{f * v:.{digits}f}" for v, (_, f, digits) in cells)])
    print_table(("fold", *(labels[name][0] for name in names)), lines)
    for name, values in known.items():
        if len(values) < folds:
            print(f"mean and sd of {labels[name][0]} are of {len(values)} of {folds} folds: the others have none")
    print(f"folds    {place / TABLE}")
    if lacking := [str(fold) for fold in range(folds) if not (place / str(fold) / PREDICTIONS).is_file()]:
        print(f"no table of all predictions: fold {', '.join(lacking)} has none")
    else:
        held_out = list(_held_out(place, folds, "test" if tested else "val"))
        write_csv(place / PREDICTIONS, held_out)
        names_of = [next(value for key, value in row.items() if key.endswith("_id")) for row in held_out]
        several = sum(count > 1 for count in Counter(names_of).values())
        print(f"bags     {place / PREDICTIONS}{f' ({several} in several folds)' if several else ''}")
    print(f"report   softmaxfree report {place}")


def _held_out(place: Path, folds: int, split: str) -> Iterator[dict[str, str]]:
    """Rows of the bags that a fold did not train on."""
    for fold in range(folds):
        with (place / str(fold) / PREDICTIONS).open(newline="", encoding="utf-8") as file:
            yield from ({"fold": str(fold), **row} for row in csv.DictReader(file) if row["split"] == split)
