"""Modules with weights: stem, position table, landmarks, softmax-free attention, block."""

from softmaxfree.layers.attention import SoftmaxFreeAttention
from softmaxfree.layers.block import SoftmaxFreeBlock
from softmaxfree.layers.embed import ConvEmbedding, PositionTable, downsample, stem
from softmaxfree.layers.landmarks import Landmarks

__all__ = [
    "ConvEmbedding",
    "Landmarks",
    "PositionTable",
    "SoftmaxFreeAttention",
    "SoftmaxFreeBlock",
    "downsample",
    "stem",
]
