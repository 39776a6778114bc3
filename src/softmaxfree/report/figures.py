"""Figures of matplotlib as PNG files and as SVG inside a page, where they take the page's colours."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from softmaxfree.atomic import atomic_write

__all__ = ["save_png", "to_svg"]

_INK = "#123456"  # stands for the colour of the page's text
_FALLBACK = (
    "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Arial Unicode MS", "Hiragino Sans", "Microsoft YaHei",
    "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai",
)  # fmt: skip


def save_png(build: Callable[[], Figure], path: str | Path, software: str | None = None) -> None:
    """Write what a function draws as a PNG file, black on white, with the name of what made it; None for matplotlib."""
    with _style("black"), atomic_write(path) as part:
        build().savefig(part, dpi=150, metadata={"Software": software} if software else None)


def to_svg(build: Callable[[], Figure], description: str) -> str:
    """Return what a function draws as an `svg` element.

    Args:
        build: draws it.
        description: what can be seen, for who cannot see it; escaped already.

    Returns:
        HTML that refers to nothing outside.
    """
    file = io.StringIO()
    with _style(_INK):
        build().savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    element = file.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' xmlns(:xlink)?="[^"]*"', "", element)  # not needed inside HTML
    element = element.replace("xlink:href", "href").replace(_INK, "currentColor")
    element = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 var(--font)", element)
    return element.replace("<svg", f'<svg role="img" aria-label="{description}"', 1).strip()


@contextmanager
def _style(ink: str) -> Iterator[None]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    known = set(font_manager.get_font_names())
    rc: dict[Any, Any] = {
        **dict.fromkeys(inked, ink),
        "font.family": ["DejaVu Sans", *(name for name in _FALLBACK if name in known)],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "softmaxfree",
    }
    with matplotlib.rc_context(rc), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a browser has more fonts
        yield
