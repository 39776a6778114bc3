"""Settings by which runs differ."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from softmaxfree.data.places import PLACES, same_place
from softmaxfree.errors import InputError
from softmaxfree.report.page import ABSENT
from softmaxfree.report.summary import read_config
from softmaxfree.weights import read_record

__all__ = ["different_settings"]

_MODEL = "model.model_args"


def different_settings(folders: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """Return the settings that are not equal in all runs.

    A resumed run names all arguments of its model, and its table of the split: what is only written otherwise, and is
    the same, is left out.

    Args:
        folders: of the runs.

    Returns:
        Keys, and the value in each run as a recipe has it.
    """
    flat = [dict(_flat(read_config(folder))) for folder in folders]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = [(key, [_as_yaml(config.get(key, ABSENT)) for config in flat]) for key in keys]
    different = [(key, values) for key, values in rows if len(set(values)) > 1]
    same = set()
    if any(key.startswith(_MODEL) for key, _ in different):
        built = [_built(folder) for folder in folders]
        same = {key for key, _ in different if key == _MODEL or _all_equal([own.get(key) for own in built])}
    if _all_equal([_split(folder) for folder in folders]):
        same.add("data.split")
    places = {f"data.{name}" for name in PLACES}
    same |= {key for key, values in different if key in places and all(same_place(values[0], v) for v in values)}
    return [(key, values) for key, values in different if key not in same]


def _all_equal(values: Sequence[Any]) -> bool:
    """Whether all are known, and one as another."""
    return None not in values and all(value == values[0] for value in values)


def _built(folder: Path) -> dict[str, Any]:
    """The arguments that the model of a run was built with, as its weights tell; none where there are none."""
    for name in ("best.ckpt", "last.ckpt"):
        with suppress(InputError, OSError):
            return dict(_flat(read_record(folder / name).arguments.get("model_args") or {}, f"{_MODEL}."))
    return {}


def _split(folder: Path) -> bytes | None:
    file = folder / "split.csv"
    return file.read_bytes() if file.is_file() else None


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _as_yaml(value: Any) -> str:
    """A value as a recipe has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
