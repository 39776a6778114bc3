"""Modules with weights: stem, position table, landmarks, softmax-free attention, block."""

from softmaxfree.layers.attention import SoftmaxFreeAttention
from softmaxfree.layers.block import SoftmaxFreeBlock
from softmaxfree.layers.embed import PositionTable, downsample, stem
from softmaxfree.layers.landmarks import Landmarks

__all__ = ["Landmarks", "PositionTable", "SoftmaxFreeAttention", "SoftmaxFreeBlock", "downsample", "stem"]
