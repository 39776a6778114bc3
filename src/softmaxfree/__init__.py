"""Softmax-free linear vision transformers (SOFT, SOFT++). Importing this registers the models with timm."""

from softmaxfree import layers, models, ops
from softmaxfree.version import __version__

__all__ = ["__version__", "layers", "models", "ops"]
