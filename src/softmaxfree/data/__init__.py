"""Data sets as LightningDataModules. Each tells `num_classes`, `class_names` and timm's `data_config`."""

from softmaxfree.data.ade20k import Ade20kDataModule
from softmaxfree.data.coco import CocoDataModule
from softmaxfree.data.digits import DigitsDataModule
from softmaxfree.data.earth import EarthDataModule
from softmaxfree.data.folders import ImageFolderDataModule
from softmaxfree.data.masks import MaskFolderDataModule
from softmaxfree.data.scenes import ScenesDetectionDataModule, ScenesSegmentationDataModule
from softmaxfree.data.solar import SolarCellsDataModule

__all__ = [
    "Ade20kDataModule",
    "CocoDataModule",
    "DigitsDataModule",
    "EarthDataModule",
    "ImageFolderDataModule",
    "MaskFolderDataModule",
    "ScenesDetectionDataModule",
    "ScenesSegmentationDataModule",
    "SolarCellsDataModule",
]
