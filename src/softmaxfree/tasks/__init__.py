"""What to train: one LightningModule a task."""

from softmaxfree.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
