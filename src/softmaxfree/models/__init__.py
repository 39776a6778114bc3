"""Backbones, registered with timm when this package is imported."""

from softmaxfree.models import soft
from softmaxfree.models.pyramid import SoftmaxFreeTransformer

__all__ = ["SoftmaxFreeTransformer", "soft"]
