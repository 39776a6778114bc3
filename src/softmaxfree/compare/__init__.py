"""Mixers compared in one network: cost, error, padding, half precision, and accuracy after equal training."""

from softmaxfree.compare.run import Comparison, compare
from softmaxfree.compare.studies import STUDIES

__all__ = ["STUDIES", "Comparison", "compare"]
