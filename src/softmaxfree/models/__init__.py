"""Backbones, registered with timm when this package is imported."""

from softmaxfree.models import linearized, soft, vit
from softmaxfree.models.pyramid import SoftmaxFreeTransformer
from softmaxfree.models.vit import SoftmaxFreeViT

__all__ = ["SoftmaxFreeTransformer", "SoftmaxFreeViT", "linearized", "soft", "vit"]
