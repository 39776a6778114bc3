"""`softmaxfree report`: several runs on one page."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["run"]


def run(runs: Sequence[str], *, out: str | None = None) -> Path:
    """Compare several runs on one HTML page, or write the page of one run again.

    The page is one file that holds all it shows; it needs no network.

    Args:
        runs: Folders of runs; one folder writes the page of that run again.
        out: HTML file to write. By default it is `report.html` in the folder of the run; for several runs, in the
            nearest folder that holds all of them.

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
