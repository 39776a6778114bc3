"""A trained softmax transformer into a linear one."""

from softmaxfree.linearize.pictures import Pictures, find_pictures
from softmaxfree.linearize.run import linearize, load_measures
from softmaxfree.linearize.settings import Settings
from softmaxfree.linearize.teacher import bundled_teacher

__all__ = ["Pictures", "Settings", "bundled_teacher", "find_pictures", "linearize", "load_measures"]
