"""Image classification with any model of timm."""

from typing import Any, ClassVar, Literal

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.arguments import require
from softmaxfree.errors import InputError
from softmaxfree.models.creation import create_model
from softmaxfree.ops import stablemax_logits
from softmaxfree.tasks.memory import tells_memory
from softmaxfree.tasks.remarks import one_class_for_all
from softmaxfree.tasks.training import AbstractTask
from softmaxfree.tasks.weights import weights_of

__all__ = ["ClassificationTask"]

_TOP = 5


class ClassificationTask(AbstractTask):
    """Trains a classifier, and measures loss, top-1, top-5 and the confusion matrix.

    `softmaxfree.tasks.weights.balanced` makes `class_weights` of the counts of the classes.

    Args:
        name: Name of the model, any of timm's or ours; `softmaxfree models` lists ours.
        num_classes: Number of classes in the data.
        model_args: Further arguments of `timm.create_model`, such as `drop_path_rate`, and of our networks `mixer`,
            `mixer_args` and `solver`; null for none.
        mixup: Strength (alpha) of mixup, which blends two images; 0 for none.
        cutmix: Strength (alpha) of CutMix, which pastes a part of one image into another; 0 for none.
        mixup_prob: Probability that a batch is mixed, 0 to 1.
        mixup_switch_prob: Probability of CutMix rather than mixup, where both are on.
        label_smoothing: Part of the target that is spread over all classes, 0 to 1.
        loss: Kind of the training loss: "cross_entropy", or "stablemax" for cross-entropy with StableMax in place of
            softmax, whose gradient does not die out where the right answer is sure already.
        class_weights: Weight of each class in the training loss; null gives all classes the same weight.
        grad_checkpointing: Whether blocks are computed again in the backward pass, which saves memory and costs time.
        compile: Whether the model runs through `torch.compile`.
        **kwargs: How to optimize, see `AbstractTask`.
    """

    monitor = "val/top1"
    summary: ClassVar = {
        "val/top1": ("top-1 (%)", 100, 2),
        "val/top5": ("top-5 (%)", 100, 2),
        "val/loss": ("validation loss", 1, 4),
    }

    class_weights: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int,
        model_args: dict[str, Any] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        loss: Literal["cross_entropy", "stablemax"] = "cross_entropy",
        class_weights: list[float] | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if "num_classes" in (model_args or {}):
            raise InputError("model.model_args.num_classes: give model.num_classes alone")
        require(loss in ("cross_entropy", "stablemax"), "model.loss", loss, "cross_entropy or stablemax")
        with self.naming_arguments():
            weights = weights_of(class_weights, num_classes)
            self.model: Any = create_model(name, num_classes=num_classes, **self.start_args(model_args))
        if grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.start()
        if compile:
            self.model.compile()
        self.mixup = None
        if mixup > 0 or cutmix > 0:
            self.mixup = Mixup(
                mixup_alpha=mixup,
                cutmix_alpha=cutmix,
                prob=mixup_prob,
                switch_prob=mixup_switch_prob,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )
        self.register_buffer("class_weights", weights, persistent=False)
        self.val_loss = MeanMetric()
        ranks = [1, _TOP] if num_classes > _TOP + 1 else [1]  # of six, all but the least likely are among five
        self.summary = {key: row for key, row in self.summary.items() if key != f"val/top{_TOP}" or _TOP in ranks}  # type: ignore[misc]
        # Over all images, as papers count, not the mean over classes.
        self.accuracy = MetricCollection(
            {f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in ranks}, prefix="val/"
        )
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self._class_scores: dict[str, Tensor] = {}

    @property
    def class_scores(self) -> dict[str, Tensor]:
        """Precision, recall and F1 of each class after a validation; nan where there is nothing to count."""
        return self._class_scores

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, C, H, W)."""
        return self.model(images)

    def log_odds(self, images: Tensor) -> Tensor:
        """Return what softmax turns into the probabilities (B, num_classes) that the loss is of."""
        logits = self(images)
        return stablemax_logits(logits) if self.hparams["loss"] == "stablemax" else logits

    def setup(self, stage: str) -> None:
        """Compare the model with the data.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            InputError: the data has another number of classes, or images that are too small or of other channels.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        channels, *size = getattr(data, "data_config", {}).get("input_size", (None,))
        own = self._architecture[1].get("in_chans", 3)
        if channels not in (None, own):
            raise InputError(
                f"data.in_chans is {channels}, but model.model_args.in_chans is {own}: the network must "
                "take as many channels as the images have"
            )
        minimum = getattr(self.model, "min_img_size", 1)
        if size and min(size) < minimum:
            name = self.hparams["name"]
            raise InputError(f"data.img_size is {min(size)}, but {name} needs images of {minimum} pixels or more")

    @tells_memory
    def training_step(self, batch: tuple[Tensor, Tensor] | None, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch.

        Args:
            batch: images (B, C, H, W) and labels (B,).
            batch_idx: number of the batch in its epoch.

        Returns:
            The mean loss, a scalar; None if no image of the batch could be read.

        Raises:
            InputError: the loss is not finite.
        """
        if batch is None:
            return None
        images, labels = batch
        if self.mixup is not None:
            images, targets = self._mix(images, labels)
            loss = F.cross_entropy(self.log_odds(images), targets, self.class_weights, reduction="sum")
            loss = loss / (targets @ self.class_weights).sum()  # torch's own mean of such targets is over images
        else:
            smoothing = self.hparams["label_smoothing"]
            loss = F.cross_entropy(self.log_odds(images), labels, self.class_weights, label_smoothing=smoothing)
        self.log_loss(loss, batch_idx, len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor] | None, batch_idx: int) -> None:
        """Measure a batch: images (B, C, H, W) and labels (B,); None if no image could be read."""
        if batch is None:
            return
        images, labels = batch
        logits = self.log_odds(images)  # in the order of the logits
        self.val_loss.update(F.cross_entropy(logits, labels), weight=len(images))
        self.accuracy.update(logits, labels)
        self.confusion.update(logits, labels)
        self.log("val/loss", self.val_loss)
        self.log_dict(self.accuracy)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's confusions; the last ones stay readable after the run."""
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Score each class, and look whether one is given to all images."""
        confusion = self.confusion.compute()
        right, there, given = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        self._class_scores = {
            "precision": right / given,  # 0 / 0 is nan
            "recall": right / there,
            "F1": 2 * right / (there + given),
        }
        self.note(one_class_for_all(confusion, "image", self))

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each image with its mirror in the batch; an odd batch borrows its first image for a moment."""
        assert self.mixup is not None
        if len(images) % 2 == 0:
            return self.mixup(images, labels)
        images, targets = self.mixup(torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]]))
        return images[:-1], targets[:-1]
