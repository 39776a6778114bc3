"""A trained softmax transformer into a linear one."""

from softmaxfree.linearize.pictures import Pictures, find_pictures
from softmaxfree.linearize.run import linearize, load_measures
from softmaxfree.linearize.settings import Settings
from softmaxfree.linearize.teacher import any_size, bundled_teacher

__all__ = ["Pictures", "Settings", "any_size", "bundled_teacher", "find_pictures", "linearize", "load_measures"]
