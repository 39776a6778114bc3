"""Multiple-instance learning: networks for bags of patch features, and maps of what they look at."""

from softmaxfree.mil.encoder import BagEncoder
from softmaxfree.mil.nystrom import NystromAttention
from softmaxfree.mil.pooling import GatedAttention, InstanceMax, MaxPooling, MeanPooling
from softmaxfree.mil.registry import create_bag_model, list_bag_models
from softmaxfree.mil.transmil import TransMIL

__all__ = [
    "BagEncoder",
    "GatedAttention",
    "InstanceMax",
    "MaxPooling",
    "MeanPooling",
    "NystromAttention",
    "TransMIL",
    "create_bag_model",
    "list_bag_models",
]
