"""What to train: one LightningModule a task."""

from softmaxfree.tasks.classification import ClassificationTask
from softmaxfree.tasks.detection import DetectionTask
from softmaxfree.tasks.segmentation import SegmentationTask

__all__ = ["ClassificationTask", "DetectionTask", "SegmentationTask"]
