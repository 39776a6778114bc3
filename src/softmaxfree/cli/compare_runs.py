"""`softmaxfree report`: several runs on one page."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["run"]


def run(runs: Sequence[str], *, out: str | None = None) -> Path:
    """Compare runs on one page: settings, curves, scores.

    The page holds all that it shows, and needs no network.

    Args:
        runs: Folders of runs.
        out: The HTML file to write. By default `comparison.html` in the folder that holds the runs.

    Returns:
        The path of the page.

    Raises:
        InputError: a folder is no run.
        OSError: the page cannot be written.

    Examples:
        softmaxfree report runs/digits/0 runs/digits/1
        softmaxfree report runs/digits/0 runs/solar_cells/0 --out both.html
    """
    from softmaxfree.report import compare

    path = compare(list(runs), out)
    print(f"report: {path}")
    return path
