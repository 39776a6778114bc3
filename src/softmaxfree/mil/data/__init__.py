"""Bags as LightningDataModules: slides of one's own, and bags that are embedded."""

from softmaxfree.mil.data.bag import Bag, BagBatch, collate
from softmaxfree.mil.data.bags import BagsDataModule

__all__ = ["Bag", "BagBatch", "BagsDataModule", "collate"]
