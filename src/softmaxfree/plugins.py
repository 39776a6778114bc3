"""Modules of other packages, which bring mixers and solvers of their own."""

import functools
import warnings
from importlib import metadata

__all__ = ["GROUP", "load_plugins"]

GROUP = "softmaxfree.plugins"


@functools.cache
def load_plugins() -> None:
    """Import each installed package's modules of the entry point group `softmaxfree.plugins`, once.

    One that cannot be imported is left out with a warning: it may have nothing to do with what is asked for.
    """
    for entry in metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # whatever code of others raises
            warnings.warn(
                f"the plug-in {entry.name!r} ({entry.value}) cannot be imported and is left out: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
