"""Image classification with any model of timm."""

import difflib
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.tasks.checkpoints import load_state
from softmaxfree.tasks.optimization import LrScaling, ScheduleName, create_schedule, epochs_done, scaled_lr

__all__ = ["ClassificationTask"]


class ClassificationTask(LightningModule):
    """Trains a classifier, and measures loss, top-1, top-5 and the confusion matrix.

    Args:
        name: model of timm, ours included.
        num_classes: of the data.
        model_args: further arguments of `timm.create_model`, such as `drop_path_rate`.
        opt: optimizer, one of `timm.optim.list_optimizers()`.
        opt_args: its further arguments, such as `betas`.
        lr: peak learning rate.
        lr_scaling: how `lr` follows the images an update (batch x processes x accumulated steps).
        base_batch: images an update for which `lr` is meant.
        weight_decay: of weights; biases, norms and what the model exempts have none.
        layer_decay: factor on the rate from each layer to the one before it; null for one rate.
        sched: shape of the decay, by timm.
        warmup_epochs: length of the linear warm-up.
        warmup_lr: where it starts.
        min_lr: where the decay ends.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        mixup_prob: probability that a batch is mixed.
        mixup_switch_prob: probability of CutMix rather than mixup, where both are on.
        label_smoothing: part of the target that is spread over all classes.
        ema_decay: of the moving average of the weights, which is validated and kept; null for none.
        grad_checkpointing: recompute the blocks in the backward pass, to save memory.
        compile: run the model through `torch.compile`.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        model_args: dict[str, Any] | None = None,
        opt: str = "adamw",
        opt_args: dict[str, Any] | None = None,
        lr: float = 1e-3,
        lr_scaling: LrScaling = "none",
        base_batch: int = 1024,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        sched: ScheduleName = "cosine",
        warmup_epochs: int = 5,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        label_smoothing: float = 0.1,
        ema_decay: float | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = _create_model(name, num_classes=num_classes, **(model_args or {}))
        if grad_checkpointing:
            self.model.set_grad_checkpointing()
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
        self.train_loss = MeanMetric()
        self.val_loss = MeanMetric()
        # Over all images, as papers count, not the mean over classes.
        self.accuracy = MetricCollection(
            {f"top{k}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro") for k in (1, 5)},
            prefix="val/",
        )
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, C, H, W)."""
        return self.model(images)

    def setup(self, stage: str) -> None:
        """Compare the model with the data.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            ValueError: the data has another number of classes, or its images are too small.
        """
        name, num_classes = self.hparams["name"], self.hparams["num_classes"]
        data = getattr(self.trainer, "datamodule", None)
        classes = getattr(data, "num_classes", None)
        if classes not in (None, num_classes):
            raise ValueError(f"model.num_classes is {num_classes}, but the data has {classes} classes")
        size = getattr(data, "data_config", {}).get("input_size", ())[1:]
        minimum = getattr(self.model, "min_img_size", 1)
        if size and min(size) < minimum:
            raise ValueError(f"data.img_size is {min(size)}, but {name} needs images of {minimum} pixels or more")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Args:
            batch: images (B, C, H, W) and labels (B,).
            batch_idx: number of the batch in its epoch.

        Returns:
            The mean loss, a scalar.

        Raises:
            ValueError: the loss is not finite.
        """
        images, labels = batch
        if self.mixup is not None:
            images, targets = self._mix(images, labels)
            loss = F.cross_entropy(self(images), targets)
        else:
            loss = F.cross_entropy(self(images), labels, label_smoothing=self.hparams["label_smoothing"])
        if not loss.isfinite():
            raise ValueError(self._non_finite(loss, batch_idx))
        self.train_loss.update(loss.detach(), weight=len(images))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a batch: images (B, C, H, W) and labels (B,)."""
        images, labels = batch
        logits = self(images)
        self.val_loss.update(F.cross_entropy(logits, labels), weight=len(images))
        self.accuracy.update(logits, labels)
        self.confusion.update(logits, labels)
        self.log("val/loss", self.val_loss)
        self.log_dict(self.accuracy)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's confusions; the last ones stay readable after the run."""
        self.confusion.reset()

    def configure_optimizers(self) -> Any:
        """Return optimizer and schedule of timm."""
        h = self.hparams
        optimizer = create_optimizer_v2(
            self.model,
            h["opt"],
            lr=scaled_lr(h["lr"], h["lr_scaling"], h["base_batch"], self.trainer),
            weight_decay=h["weight_decay"],
            layer_decay=h["layer_decay"],
            **(h["opt_args"] or {}),
        )
        schedule = create_schedule(
            optimizer,
            h["sched"],
            self.trainer,
            warmup_epochs=h["warmup_epochs"],
            warmup_lr=h["warmup_lr"],
            min_lr=h["min_lr"],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the rates for the next update."""
        scheduler.step(epochs_done(self.trainer))

    def configure_callbacks(self) -> list[Callback]:
        """Return the moving average of the weights, if there is one.

        Returns:
            One callback, or none.

        Raises:
            ValueError: the weights are sharded, where they cannot be averaged.
        """
        decay = self.hparams["ema_decay"]
        if decay is None:
            return []
        if self._sharded():
            raise ValueError("model.ema_decay must be null with sharded weights (trainer.strategy)")
        return [WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(decay))]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how images are prepared and what the classes are called, for whoever uses the weights."""
        if hasattr(self.model, "solver"):  # the weights are tied to it, and loading released ones selects theirs
            arguments = {**(self.hparams["model_args"] or {}), "solver": self.model.solver.to_dict()}
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "model_args": arguments}
        data = getattr(self._trainer, "datamodule", None)
        checkpoint.update({key: getattr(data, key) for key in ("data_config", "class_names") if hasattr(data, key)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model; leave the schedule to the arguments of this run.

        Args:
            checkpoint: what the Trainer saved.

        Raises:
            ValueError: its weights do not fit.
        """
        if not self._sharded():  # else the strategy has its own way
            self._load_whole(checkpoint)
        # A function of step and arguments. The saved one would ignore a new `trainer.max_epochs`.
        checkpoint["lr_schedulers"] = []

    def _sharded(self) -> bool:
        trainer = self._trainer
        return trainer is not None and isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)

    def _load_whole(self, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"].items()
        name = "the checkpoint of {name} with {num_classes} classes".format_map(checkpoint["hyper_parameters"])
        load_state(self.model, {key.removeprefix("model."): weight for key, weight in weights}, name)

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each image with its mirror in the batch; an odd batch borrows its first image for a moment."""
        assert self.mixup is not None
        if len(images) % 2 == 0:
            return self.mixup(images, labels)
        images, targets = self.mixup(torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]]))
        return images[:-1], targets[:-1]

    def _non_finite(self, loss: Tensor, batch_idx: int) -> str:
        where = f"step {self.global_step} (epoch {self.current_epoch}, batch {batch_idx})"
        kept = [path for c in self.trainer.checkpoint_callbacks if (path := getattr(c, "best_model_path", ""))]
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return f"the loss is {loss.item()} at {where}; {last}; try a lower model.lr or trainer.precision 32-true"


def _create_model(name: str, **arguments: Any) -> Any:
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models())
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"model.name: timm has no model {name!r}{hint}")
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:  # an argument that the model does not have
        raise ValueError(f"model.model_args: {error}") from error
