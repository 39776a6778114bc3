"""Softmax-free linear vision transformers (SOFT, SOFT++)."""

from softmaxfree.version import __version__

__all__ = ["__version__"]
