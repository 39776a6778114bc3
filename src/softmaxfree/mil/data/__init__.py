"""Bags as LightningDataModules: slides of one's own, and bags that are embedded."""

from softmaxfree.mil.data.bag import Bag, BagBatch, collate
from softmaxfree.mil.data.bags import BagsDataModule
from softmaxfree.mil.data.digit_bags import DigitBags
from softmaxfree.mil.data.embedded import EmbeddedBagsDataModule
from softmaxfree.mil.data.raff_holt import RaffHoltBags

__all__ = ["Bag", "BagBatch", "BagsDataModule", "DigitBags", "EmbeddedBagsDataModule", "RaffHoltBags", "collate"]
