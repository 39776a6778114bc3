"""`softmaxfree report`: several runs on one page."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["run"]


def run(runs: Sequence[str], *, out: str | None = None) -> Path:
    """Compare runs on one page, or write the page of one run again.

    The page holds all that it shows, and needs no network.

    Args:
        runs: Folders of runs.
        out: The HTML file to write. By default `report.html` in the folder of the run, or in the deepest folder that
            holds all of them.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: a folder is no run, or the file is there and not a report.
        OSError: the page cannot be written.

    Examples:
        softmaxfree report runs/digits/0
        softmaxfree report runs/digits/0 runs/digits/1 --out digits.html
    """
    from softmaxfree.report import compare

    path = compare(list(runs), out)
    print(f"report: {path}")
    return path
