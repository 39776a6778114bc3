"""Semantic segmentation with any backbone of timm."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.errors import InputError
from softmaxfree.models.segmentation import Segmenter
from softmaxfree.models.windows import at_scales, slide
from softmaxfree.tasks.memory import tells_memory
from softmaxfree.tasks.remarks import one_class_for_all
from softmaxfree.tasks.training import AbstractTask
from softmaxfree.tasks.weights import weights_of

__all__ = ["SegmentationTask"]

Batch = tuple[list[Tensor], list[Tensor]]


class SegmentationTask(AbstractTask):
    """Trains a segmenter, and measures mIoU and pixel accuracy over all pixels of the data, as papers count.

    Images `(3, h, w)` in [0, 1] and labels `(h, w)` come as lists. Logits are brought to the size of the label, which
    may be that of the original image.

    Args:
        name: Name of the backbone, any model of timm's or ours; `softmaxfree models` lists ours.
        num_classes: Number of classes in the labels, without what is ignored.
        head: Kind of the head: "upernet", "semantic_fpn" or a decoder of segmentation_models_pytorch such as "unet".
        model_args: Further arguments of `timm.create_model`, such as `drop_path_rate`, and of our networks `mixer`,
            `mixer_args` and `solver`; null for none.
        head_args: Further arguments of the head, see `softmaxfree.models.segmentation.Segmenter`; null for none, "auto"
            for a head that is as slim as the backbone.
        auxiliary_weight: Weight of the auxiliary head's loss, where the head has one.
        class_weights: Weight of each class in the training loss; null gives all classes the same weight.
        ignore_index: Label of the pixels that count neither in the loss nor in the scores.
        evaluation: How an image is evaluated: "whole" at once, or in windows that "slide" over it.
        scales: Ratios to its size at which an image is evaluated, with the probabilities averaged; null for its own
            size alone.
        window: Height and width of the sliding windows, in pixels.
        stride: Distance from one sliding window to the next, down and across, in pixels.
        grad_checkpointing: Whether the backbone is computed again in the backward pass, which saves memory and costs
            time.
        **kwargs: How to optimize, see `AbstractTask`.
    """

    monitor = "val/miou"
    summary: ClassVar = {
        "val/miou": ("mIoU (%)", 100, 2),
        "val/pixel_accuracy": ("pixel accuracy (%)", 100, 2),
        "val/loss": ("validation loss", 1, 4),
    }

    class_weights: Tensor

    def __init__(
        self,
        name: str,
        num_classes: int,
        head: str = "upernet",
        model_args: dict[str, Any] | None = None,
        head_args: dict[str, Any] | Literal["auto"] | None = None,
        auxiliary_weight: float = 0.4,
        class_weights: list[float] | None = None,
        ignore_index: int = 255,
        evaluation: Literal["whole", "slide"] = "whole",
        scales: list[float] | None = None,
        window: tuple[int, int] = (512, 512),
        stride: tuple[int, int] = (341, 341),
        grad_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        arguments = self.start_args(model_args)
        with self.naming_arguments():
            weights = weights_of(class_weights, num_classes)
            self.model: Any = Segmenter(head, name, num_classes, model_args=arguments, head_args=head_args)
        if grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.start()
        self.register_buffer("class_weights", weights, persistent=False)
        self.val_loss = MeanMetric()
        counted: dict[str, Any] = {"num_classes": num_classes, "ignore_index": ignore_index, "validate_args": False}
        self.pixel_accuracy = MulticlassAccuracy(**counted, average="micro")
        self.confusion = MulticlassConfusionMatrix(**counted)
        self.class_iou = torch.full((num_classes,), torch.nan)
        """After a validation: IoU of each class, nan for one that is nowhere."""

    @property
    def class_scores(self) -> dict[str, Tensor]:
        """IoU of each class after a validation; nan for a class that is nowhere."""
        return {"IoU": self.class_iou}

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        """Return logits (num_classes, h, w) of each image (3, h, w), as the arguments say of evaluation."""
        return at_scales(self._at_one_scale, images, self.hparams["scales"] or [1])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note all that is needed to use the weights, the widths of an "auto" head too.

        Args:
            checkpoint: what is to be saved.

        Raises:
            InputError: a loss or a weight is not finite.
        """
        super().on_save_checkpoint(checkpoint)
        if self.hparams["head_args"] == "auto":
            checkpoint["hyper_parameters"]["head_args"] = self.model.head_args

    def _at_one_scale(self, images: list[Tensor]) -> list[Tensor]:
        if self.hparams["evaluation"] == "whole":
            return self.model(images)
        return [slide(self.model, image, self.hparams["window"], self.hparams["stride"]) for image in images]

    @tells_memory
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch.

        Args:
            batch: images (3, h, w) and labels (h, w).
            batch_idx: number of the batch in its epoch.

        Returns:
            The mean over all labelled pixels, a scalar; None if no image of the batch could be read.

        Raises:
            InputError: a label is no class, or the loss is not finite.
        """
        images, labels = batch
        if not images:
            return None
        self._check(labels)
        logits, auxiliary = self.model.forward_train(images)
        loss = self._loss(logits, labels)
        if auxiliary:
            loss = loss + self.hparams["auxiliary_weight"] * self._loss(auxiliary, labels)
        self.log_loss(loss, batch_idx, len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch: images (3, h, w) and labels of those or other sizes."""
        images, labels = batch
        if not images:  # none of them could be read
            return
        self._check(labels)
        for logits, label in zip(self(images), labels, strict=True):
            if logits.shape[1:] != label.shape:
                logits = F.interpolate(logits[None], size=label.shape, mode="bilinear")[0]
            labelled = (label != self.hparams["ignore_index"]).sum()
            self.val_loss.update(self._loss([logits], [label]), weight=labelled)
            predicted = logits.argmax(0)
            self.pixel_accuracy.update(predicted, label)
            self.confusion.update(predicted, label)
        scores = {"val/loss": self.val_loss, "val/pixel_accuracy": self.pixel_accuracy}
        self.log_dict(scores, on_step=False, on_epoch=True, batch_size=len(images))

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's confusions; the last ones stay readable after the run."""
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the classes that there are, of their IoU over all pixels."""
        confusion = self.confusion.compute()
        right = confusion.diagonal()
        self.class_iou = right / (confusion.sum(0) + confusion.sum(1) - right)  # 0 / 0 is nan
        self.log("val/miou", self.class_iou.nanmean())
        self.note(one_class_for_all(confusion, "pixel", self))

    def _loss(self, logits: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Weighted mean over all labelled pixels; 0 if there are none."""
        ignored, weights = self.hparams["ignore_index"], self.class_weights
        weights = weights.to(torch.promote_types(weights.dtype, logits[0].dtype))  # one of them may be in 64 bits
        total, counted = weights.new_zeros(()), weights.new_zeros(())
        for own, label in zip(logits, labels, strict=True):
            own = own[None].to(weights.dtype)
            total = total + F.cross_entropy(own, label[None], weights, ignore_index=ignored, reduction="sum")
            own_weights = weights[label.clamp(0, len(weights) - 1)]
            counted = counted + own_weights.masked_fill(label == ignored, 0).sum()
        return total / counted.clamp(min=torch.finfo(counted.dtype).tiny)

    def _check(self, labels: list[Tensor]) -> None:
        """Check labels on the CPU; on another device, which is not waited for, cross entropy stops at a wrong one."""
        for label in labels:
            if label.device.type != "cpu":
                continue
            values = label.numpy()
            wrong = (values != self.hparams["ignore_index"]) & ((values < 0) | (values >= self.hparams["num_classes"]))
            if wrong.any():
                raise InputError(
                    f"labels must be from 0 to {self.hparams['num_classes'] - 1} or {self.hparams['ignore_index']} "
                    f"(ignored), got {values[wrong][0]}"
                )
