"""What the tables of a comparison come to: mean and spread over seeds, and how cost grows with the tokens."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["accuracies", "slopes", "told_apart"]

_Row = dict[str, Any]


def told_apart(rows: Sequence[_Row]) -> list[_Row]:
    """Returns rows in which what was measured with other code, or other images, has a name of its own.

    Args:
        rows: of a table; columns `code` and `images` tell what they were measured with.

    Returns:
        The rows; where a name has several versions, it has them behind it.
    """
    versions: dict[tuple, set[tuple]] = {}
    for row in rows:
        versions.setdefault((row["name"], row.get("data")), set()).add((row.get("code"), row.get("images")))
    out = []
    for row in rows:
        known = versions[row["name"], row.get("data")]
        parts = [
            f"{what} {row.get(what) or 'not noted'}"
            for i, what in enumerate(("code", "images"))
            if len({version[i] or "" for version in known}) > 1
        ]
        out.append({**row, "name": f"{row['name']} ({', '.join(parts)})"} if parts else row)
    return out


def accuracies(rows: Sequence[_Row], by: Sequence[str] = ()) -> list[_Row]:
    """Returns the scores of each mixer and data over the seeds, the best first.

    Args:
        rows: of `accuracy.csv`, or of `transfer.csv`.
        by: further columns that tell rows apart.

    Returns:
        Rows with `name`, `data`, `metric`, `mean`, `spread` (standard deviation over seeds, None for one seed),
        `seeds`, `seconds` (mean), `validated` and `guess` where they are known, `remark` (why a training failed, or
        that the mean is within two standard errors of the guess), and those of `by`.
    """
    groups: dict[tuple, list[_Row]] = {}
    for row in rows:
        groups.setdefault((row["data"], *(row[key] for key in by), row["name"]), []).append(row)
    out = []
    for (data, *rest, name), own in groups.items():
        scores = [float(row["score"]) for row in own if row.get("score")]
        seconds = [float(row["seconds"]) for row in own if row.get("seconds")]
        guess = next((float(row["guess"]) for row in own if row.get("guess")), None)
        validated = next((int(row["validated"]) for row in own if row.get("validated")), 0)
        out.append(
            {
                "name": name,
                "data": data,
                **dict(zip(by, rest, strict=True)),
                "metric": next((row["metric"] for row in own if row.get("metric")), ""),
                "mean": statistics.fmean(scores) if scores else math.nan,
                "spread": statistics.stdev(scores) if len(scores) > 1 else None,
                "seeds": len(scores),
                "seconds": statistics.fmean(seconds) if seconds else math.nan,
                "validated": validated,
                "guess": guess,
                "remark": next(
                    (row["not_measured"] for row in own if row.get("not_measured")), _weak(scores, guess, validated)
                ),
            }
        )
    return sorted(out, key=lambda row: (row["data"], *(row[k] for k in by), -row["mean"] if row["seeds"] else math.inf))


def _weak(scores: Sequence[float], guess: float | None, validated: int) -> str:
    if guess is None or not scores:
        return ""
    error = math.sqrt(guess * (1 - guess) / validated)
    return "" if statistics.fmean(scores) > guess + 2 * error else "within chance of answering the largest class always"


def slopes(cost: Sequence[_Row]) -> list[_Row]:
    """Returns how time and memory of each mixer grow with the number of tokens, forward.

    Args:
        cost: rows of `cost.csv`.

    Returns:
        Rows with `name`, `time` and `memory`: the exponent between the two largest numbers of tokens that were
        measured; 1 is linear, 2 quadratic.
    """
    points: dict[str, dict[int, tuple[float, float]]] = {}
    for row in cost:
        if row.get("what") == "forward" and row.get("milliseconds"):
            measured = float(row["milliseconds"]), float(row["peak_mib"])
            points.setdefault(row["name"], {})[int(row["tokens"])] = measured
    out = []
    for name, own in points.items():
        if len(own) < 2:
            continue
        (n0, (t0, m0)), (n1, (t1, m1)) = sorted(own.items())[-2:]
        growth = math.log(n1 / n0)
        out.append(
            {
                "name": name,
                "time": math.log(t1 / t0) / growth,
                "memory": math.log(m1 / m0) / growth if m0 and m1 else math.nan,
            }
        )
    return sorted(out, key=lambda row: row["time"])
