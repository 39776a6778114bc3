"""Classification of bags."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from softmaxfree.arguments import require
from softmaxfree.mil.data.bag import BagBatch
from softmaxfree.mil.tasks.bag_task import AbstractBagTask
from softmaxfree.mil.tasks.instances import InstanceScores
from softmaxfree.mil.tasks.scores import Predicted, class_table, scores_of, size_table
from softmaxfree.tasks.remarks import one_class_for_all
from softmaxfree.tasks.weights import weights_of

__all__ = ["BagClassificationTask"]

_KAPPAS = ("none", "linear", "quadratic")


class BagClassificationTask(AbstractBagTask):
    """Trains a network of bags, and measures macro AUC, balanced accuracy, Cohen's kappa and the confusion matrix.

    Where the data has a test split, it is measured after the training, with the weights that validated best.

    Args:
        name: Name of the network: bag_encoder, transmil, gated_attention, instance_max, mean or max.
        num_classes: Number of classes in the data.
        in_dim: Number of features of a patch.
        model_args: Further arguments of the network, such as `embed_dim`; null for none.
        label_smoothing: Part of the target that is spread over all classes, 0 to 1.
        class_weights: Weight of each class in the training loss; null gives all classes the same weight.
        kappa: Weights of Cohen's kappa: "none", or "linear" or "quadratic" for classes that are grades.
        **kwargs: How to optimize, see `AbstractTask`.
    """

    monitor = "val/auc"
    target = "class"
    summary: ClassVar = {
        "val/auc": ("macro AUC", 1, 4),
        "val/balanced_accuracy": ("balanced accuracy (%)", 100, 2),
        "val/kappa": ("kappa", 1, 4),
        "val/instance_auc": ("AUC of patches", 1, 4),
        "val/loss": ("validation loss", 1, 4),
        "test/auc": ("test macro AUC", 1, 4),
        "test/balanced_accuracy": ("test balanced accuracy (%)", 100, 2),
        "test/kappa": ("test kappa", 1, 4),
        "test/instance_auc": ("test AUC of patches", 1, 4),
    }
    measured: ClassVar[tuple[str, ...]] = ("auc", "balanced_accuracy", "kappa")
    """Scores of a test."""

    class_weights: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_dim: int = 1024,
        model_args: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        kappa: Literal["none", "linear", "quadratic"] = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(kappa in _KAPPAS, "model.kappa", kappa, " or ".join(_KAPPAS))
        with self.naming_arguments():
            weights = weights_of(class_weights, num_classes)
        self.model: Any = self.make_model(name, num_classes, in_dim, model_args)
        self.start()
        self.register_buffer("class_weights", weights, persistent=False)
        self.val_loss = MeanMetric()
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.instances = InstanceScores()
        self._class_scores: dict[str, Tensor] = {}

    @property
    def class_scores(self) -> dict[str, Tensor]:
        """AUC, precision, recall and F1 of each class after a validation; nan where there is nothing to count."""
        return self._class_scores

    def tested_classes(self) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return `class_scores` and the confusion matrix (C, C) of the test; None before one."""
        if (found := self.predicted.get("test")) is None:
            return None
        confusion = multiclass_confusion_matrix(found.outputs, found.labels, found.outputs.shape[1])
        return class_table(found.outputs, found.labels), confusion

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, a scalar, of logits (B, num_classes) and labels (B,)."""
        weights, smoothing = self.class_weights.to(logits.dtype), self.hparams["label_smoothing"]
        # not divided by the weights of the batch: in a batch of one bag they would cancel
        return F.cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="none").mean()

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, (B, num_classes), by logits of the same shape."""
        return logits.softmax(1)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch; the last confusions stay readable after the run."""
        self._forget()
        self.confusion.reset()

    def validation_step(self, batch: BagBatch, batch_idx: int) -> None:
        """Measure a batch of bags."""
        logits = self(batch)
        self.val_loss.update(F.cross_entropy(logits, batch.labels), weight=len(logits))
        self.kept.update(logits, batch)
        self.confusion.update(logits, batch.labels)
        self.instances.update(self.model, batch)
        self.log("val/loss", self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Score the bags together, each class, and bags by size; look whether one class is given to all."""
        found = self._measure("val")
        self._class_scores = class_table(found.outputs, found.labels)
        self.size_scores = size_table(found.outputs, found.labels, found.sizes)
        unit = getattr(getattr(self._trainer, "datamodule", None), "unit", "bag")
        self.note(one_class_for_all(self.confusion.compute(), unit, self))

    def on_test_epoch_start(self) -> None:
        """Forget what was measured before."""
        self._forget()

    def test_step(self, batch: BagBatch, batch_idx: int) -> None:
        """Measure a batch of bags."""
        self.kept.update(self(batch), batch)
        self.instances.update(self.model, batch)

    def on_test_epoch_end(self) -> None:
        """Score the bags together, and by size."""
        found = self._measure("test")
        self.size_scores = size_table(found.outputs, found.labels, found.sizes)

    def _forget(self) -> None:
        self.kept.reset()
        self.instances.reset()

    def label_cells(self, labels: Tensor, outputs: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the name of the true class."""
        return {"label": class_names[int(labels)]}

    def _measure(self, split: str) -> Predicted:
        found = self.predicted[split] = self.kept.predicted()
        scores = scores_of(found.outputs, found.labels, self.hparams["kappa"])
        self.log_dict({f"{split}/{name}": scores[name].to(torch.float32) for name in self.measured})
        for name, value in self.instances.compute().items():
            self.log(f"{split}/{name}", value)
        return found
