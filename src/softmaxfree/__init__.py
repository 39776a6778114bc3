"""Softmax-free linear vision transformers (SOFT, SOFT++). Importing this registers the models with timm."""

import sys

if sys.argv[:1] == ["-m"] and "softmaxfree" in sys.orig_argv:
    # `python -m softmaxfree` comes here first, and the imports below take seconds.
    from softmaxfree_cli.stops import Signals

    Signals("softmaxfree").__enter__()

from softmaxfree import layers, mixers, models, ops
from softmaxfree.version import __version__

__all__ = ["__version__", "layers", "mixers", "models", "ops"]
