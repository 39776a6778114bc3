"""Multiple-instance learning: networks for bags of patch features, and maps of what they look at."""

from softmaxfree.mil.pooling import GatedAttention, InstanceMax, MaxPooling, MeanPooling
from softmaxfree.mil.registry import create_bag_model, list_bag_models

__all__ = [
    "GatedAttention",
    "InstanceMax",
    "MaxPooling",
    "MeanPooling",
    "create_bag_model",
    "list_bag_models",
]
