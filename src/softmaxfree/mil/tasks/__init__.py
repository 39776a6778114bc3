"""What to train on bags: one LightningModule a task."""

from softmaxfree.mil.tasks.classification import BagClassificationTask
from softmaxfree.mil.tasks.survival import BagSurvivalTask
from softmaxfree.tasks.loading import register_task

__all__ = ["BagClassificationTask", "BagSurvivalTask"]

register_task(BagClassificationTask)
register_task(BagSurvivalTask)
