"""Parts of a run that was resumed: what each was begun with, in `settings.json` of its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softmaxfree.atomic import write_json

__all__ = ["SETTINGS", "Parts", "note_part"]

SETTINGS = "settings.json"
"""Its name in the folder of a run."""

Parts = dict[str, Any]
"""`settings`: value of each and where it is from; `parts`: `command` and `resumed_from` of each part."""


def note_part(
    run_dir: str | Path, settings: Mapping[str, tuple[Any, str]], command: str, resumed_from: int | None = None
) -> Parts:
    """Note what a part of a run is begun with, and return what is known of all its parts.

    Settings of earlier parts stay where a later one does not give them. To note the same part again changes nothing.

    Args:
        run_dir: the folder of the run.
        settings: value of each, and "given", the file that gives it, or why it was decided so.
        command: that began the part.
        resumed_from: finished epochs that it goes on from; None is a run from its begin.

    Returns:
        What is in the file.

    Raises:
        OSError: the disk is full.
    """
    run_dir = Path(run_dir)
    known = _earlier(run_dir) if resumed_from is not None else {"settings": {}, "parts": []}
    part = {"command": command, "resumed_from": resumed_from}
    if not known["parts"] or known["parts"][-1] != part:
        known["parts"].append(part)
    known["settings"] |= {key: [value, why] for key, (value, why) in settings.items()}
    write_json(run_dir / SETTINGS, known)
    return known


def _earlier(run_dir: Path) -> Parts:
    """What is noted; of a run of an earlier version that finished, what its summary has."""
    for name in (SETTINGS, "summary.json"):
        try:
            content = json.loads((run_dir / name).read_text(encoding="utf-8"))
            first = [{"command": content["command"], "resumed_from": None}] if name != SETTINGS else content["parts"]
            return {"settings": dict(content["settings"]), "parts": list(first)}
        except (OSError, ValueError, KeyError, TypeError):  # none, or cut off by a full disk
            continue
    return {"settings": {}, "parts": []}
