"""Pictures of what a network finds: colours of classes, boxes, masks, labels and legends."""

from softmaxfree.drawing.colours import BACKGROUND, colour, colours, is_background
from softmaxfree.drawing.legends import Entry, beside_legend, count_labels, entries
from softmaxfree.drawing.overlays import colour_classes, draw, overlay

__all__ = [
    "BACKGROUND",
    "Entry",
    "beside_legend",
    "colour",
    "colour_classes",
    "colours",
    "count_labels",
    "draw",
    "entries",
    "is_background",
    "overlay",
]
