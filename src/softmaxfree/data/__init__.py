"""Data sets as LightningDataModules. Each tells `num_classes`, `class_names` and timm's `data_config`."""

from softmaxfree.data.digits import DigitsDataModule
from softmaxfree.data.folders import ImageFolderDataModule

__all__ = ["DigitsDataModule", "ImageFolderDataModule"]
