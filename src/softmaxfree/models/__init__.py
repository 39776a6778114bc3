"""Backbones, registered with timm when this package is imported."""

from softmaxfree.models.soft import SoftmaxFreeTransformer

__all__ = ["SoftmaxFreeTransformer"]
