"""Modules with weights: stem, position table, landmarks, block."""

from softmaxfree.layers.block import Block
from softmaxfree.layers.embed import ConvEmbedding, PositionTable, downsample, stem
from softmaxfree.layers.landmarks import Landmarks

__all__ = [
    "Block",
    "ConvEmbedding",
    "Landmarks",
    "PositionTable",
    "downsample",
    "stem",
]
