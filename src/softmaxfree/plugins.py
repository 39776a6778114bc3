"""Modules of other packages, which bring mixers and solvers of their own."""

import hashlib
import inspect
import warnings
from importlib import metadata
from pathlib import Path

from softmaxfree_cli.failures import PLUGINS as GROUP

__all__ = ["GROUP", "code_of", "is_again", "load_plugins"]

_loaded: set[str] = set()  # groups


def load_plugins() -> None:
    """Import each installed package's modules of the entry point group `softmaxfree.plugins`, once.

    One that cannot be imported is left out with a warning: it may have nothing to do with what is asked for.
    """
    if GROUP in _loaded:
        return
    _loaded.add(GROUP)  # before they are: one may ask for mixers while it is imported
    for entry in metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # whatever code of others raises
            warnings.warn(
                f"the plug-in {entry.name!r} ({entry.value}) cannot be imported and is left out: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )


def is_again(known: type, new: type) -> bool:
    """Returns whether a class is another by a second run of the same lines, as of a notebook's cell."""
    same = (known.__module__, known.__qualname__) == (new.__module__, new.__qualname__)
    return known is new or (same and "<locals>" not in new.__qualname__)


def code_of(cls: type) -> str:
    """Returns a digest of the file that a class of another package is written in; "" for one of this package."""
    if cls.__module__.partition(".")[0] == __package__:
        return ""
    try:
        return hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()[:12]
    except (OSError, TypeError):  # of a notebook
        return "unknown"
