"""Modules with weights: stem, position table, landmarks, block."""

from softmaxfree.layers.block import Block, block_arguments
from softmaxfree.layers.embed import ConvEmbedding, PositionTable, downsample, stem
from softmaxfree.layers.feed_forward import KernelMlp, PolyNorm
from softmaxfree.layers.landmarks import Landmarks

__all__ = [
    "Block",
    "ConvEmbedding",
    "KernelMlp",
    "Landmarks",
    "PolyNorm",
    "PositionTable",
    "block_arguments",
    "downsample",
    "stem",
]
