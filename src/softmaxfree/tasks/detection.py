"""Object detection and instance segmentation with any backbone of timm."""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import SumMetric
from torchmetrics.detection import MeanAveragePrecision

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.errors import InputError
from softmaxfree.models.detection import Detector
from softmaxfree.tasks.memory import tells_memory
from softmaxfree.tasks.precision import require_exact
from softmaxfree.tasks.remarks import nothing_found
from softmaxfree.tasks.training import AbstractTask

__all__ = ["DetectionTask"]

Batch = tuple[list[Tensor], list[dict[str, Any]]]

_KINDS = {"retinanet": ("bbox",), "mask_rcnn": ("bbox", "segm")}
_COLUMNS = {
    "map": "AP",
    "map50": "AP50",
    "map75": "AP75",
    "map_small": "AP small",
    "map_medium": "AP medium",
    "map_large": "AP large",
}


class DetectionTask(AbstractTask):
    """Trains a detector, and measures the average precisions of COCO, of boxes and with Mask R-CNN of masks.

    A batch is a list of images `(3, h, w)` in [0, 1] and a list of targets, dicts of `boxes`, `labels` and for Mask
    R-CNN `masks`; in validation `iscrowd` and `area` count too, where they are given.

    Args:
        name: Name of the backbone, any model of timm's or ours; `softmaxfree models` lists ours.
        num_classes: Number of classes in the data, without the background.
        head: Kind of the detector: "retinanet" finds boxes, "mask_rcnn" boxes and masks.
        model_args: Further arguments of `timm.create_model`, such as `drop_path_rate`, and of our networks `mixer`,
            `mixer_args` and `solver`; null for none.
        detector_args: Further arguments of `softmaxfree.models.detection.Detector`, such as `fpn_channels`; null for
            none. The image size is not among them where the data tell it.
        grad_checkpointing: Whether the backbone's blocks are computed again in the backward pass, which saves memory
            and costs time.
        **kwargs: How to optimize, see `AbstractTask`.
    """

    fewest_classes = 1

    def __init__(
        self,
        name: str,
        num_classes: int,
        head: Literal["retinanet", "mask_rcnn"] = "mask_rcnn",
        model_args: dict[str, Any] | None = None,
        detector_args: dict[str, Any] | None = None,
        grad_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        arguments = self.start_args(model_args)
        with self.naming_arguments():
            self.model: Any = Detector(head, name, num_classes, model_args=arguments, **(detector_args or {}))
        if grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.start()
        kinds: Any = _KINDS[head]
        self.monitor = "val/segm_map" if "segm" in kinds else "val/map"  # type: ignore[misc]
        self.summary = {  # type: ignore[misc]
            f"val/{_prefix(kind)}{key}": (f"{'box' if kind == 'bbox' else 'mask'} {column} (%)", 100, 2)
            for kind in kinds
            for key, column in _COLUMNS.items()
        }
        self.average_precision = MeanAveragePrecision(iou_type=kinds, class_metrics=True, backend="pycocotools")
        self.average_precision.warn_on_many_detections = False  # COCO counts the best 100
        self.num_found = SumMetric()
        self.class_precision: dict[str, Tensor] = {}
        """After a validation: AP of each class, nan for one without objects, by "bbox" and "segm"."""

    @property
    def class_scores(self) -> dict[str, Tensor]:
        """AP of each class after a validation, of boxes and masks; nan for a class without objects."""
        return {("box AP" if kind == "bbox" else "mask AP"): values for kind, values in self.class_precision.items()}

    def setup(self, stage: str) -> None:
        """Compare the model with the data, and take the size of images from the data.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            InputError: the data has another number of classes, another size than `detector_args`, or a size that is too
                small; or the precision of the Trainer rounds boxes.
        """
        require_exact(self.trainer.precision, "boxes")
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        size = (getattr(data, "data_config", None) or {}).get("size")
        if size is None:
            return
        given = self.hparams["detector_args"] or {}
        for key, own in zip(("min_size", "max_size"), size, strict=True):
            if given.get(key, own) != own:
                raise InputError(
                    f"model.detector_args.{key} is {given[key]}, but the size of the data is {tuple(size)}; "
                    "give the size in data alone"
                )
        self.model.set_size(*size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note all that is needed to use the weights, the width of an "auto" pyramid too.

        Args:
            checkpoint: what is to be saved.

        Raises:
            InputError: a loss or a weight is not finite.
        """
        super().on_save_checkpoint(checkpoint)
        arguments = self.hparams["detector_args"] or {}
        if arguments.get("fpn_channels") == "auto":
            resolved = {**arguments, "fpn_channels": self.model.fpn_channels}
            checkpoint["hyper_parameters"]["detector_args"] = resolved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights, and without a Trainer, which has data of its own, the image size of their training.

        Args:
            checkpoint: what the Trainer saved.

        Raises:
            InputError: it does not fit.
        """
        super().on_load_checkpoint(checkpoint)
        size = (checkpoint.get("data_config") or {}).get("size")
        if self._trainer is None and size is not None:
            self.model.set_size(*size)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return what is detected in each image (3, h, w), in evaluation mode."""
        return self.model(images)

    @tells_memory
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss of a batch.

        Args:
            batch: images and targets.
            batch_idx: number of the batch in its epoch.

        Returns:
            The sum of the detector's losses; None if no image of the batch could be read.

        Raises:
            InputError: the loss is not finite.
        """
        images, targets = batch
        if not images:
            return None
        losses = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.log_loss(loss, batch_idx, len(images))
        parts = {f"train/{name.removeprefix('loss_')}": part.detach() for name, part in losses.items()}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare what is detected in a batch with its targets."""
        images, targets = batch
        if not images:  # none of them could be read
            return
        # COCO's tools read the crowds as numbers.
        targets = [{**t, "iscrowd": t["iscrowd"].long()} if "iscrowd" in t else t for t in targets]
        detections = self(images)
        self.num_found.update(sum(len(each["scores"]) for each in detections))
        self.average_precision.update(detections, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the precisions over all images."""
        found = self.average_precision.compute()
        self.average_precision.reset()
        several = len(_KINDS[self.hparams["head"]]) > 1
        classes = found["classes"].reshape(-1).long()
        for kind in _KINDS[self.hparams["head"]]:
            of_kind = f"{kind}_" if several else ""
            for key in _COLUMNS:
                value = found[of_kind + key.replace("map5", "map_5").replace("map7", "map_7")]
                self.log(f"val/{_prefix(kind)}{key}", _none_is_nan(value))
            per_class = torch.full((self.hparams["num_classes"],), torch.nan)
            per_class[classes] = _none_is_nan(found[f"{of_kind}map_per_class"].reshape(-1)).float()
            self.class_precision[kind] = per_class
        self.note(nothing_found(int(self.num_found.compute()), self))
        self.num_found.reset()


def _prefix(kind: str) -> str:
    return "segm_" if kind == "segm" else ""


def _none_is_nan(value: Tensor) -> Tensor:
    """COCO's tools say -1 where no object is of the size or class."""
    return torch.where(value < 0, torch.nan, value)
