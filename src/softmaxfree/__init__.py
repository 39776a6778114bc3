"""Softmax-free linear vision transformers (SOFT, SOFT++). Importing this registers the models with timm."""

import importlib
import sys
from typing import Any

if sys.argv[:1] == ["-m"] and "softmaxfree" in sys.orig_argv:
    # `python -m softmaxfree` comes here first, and the imports below take seconds.
    from softmaxfree_cli.stops import Signals

    Signals("softmaxfree").__enter__()

from softmaxfree import layers, mixers, models, ops
from softmaxfree.version import __version__

__all__ = ["__version__", "explain", "layers", "mixers", "models", "ops"]


def __getattr__(name: str) -> Any:
    if name == "explain":  # what only few programs need is imported when it is asked for
        return importlib.import_module("softmaxfree.explain")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
