"""What every task shares: optimizer, schedule, average of the weights, checkpoints."""

import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from softmaxfree.arguments import require
from softmaxfree.errors import InputError, NoWeightsError
from softmaxfree.models.backbone import AbstractBackbone
from softmaxfree.models.creation import standalone
from softmaxfree.tasks.averaging import Average, require_averaged, too_short_for
from softmaxfree.tasks.checkpoints import load_state, rename_kept
from softmaxfree.tasks.class_names import require_same_names
from softmaxfree.tasks.curvature import AbstractCurvatureTask, require_single_batches
from softmaxfree.tasks.freezing import freeze_backbone, frozen_modules, scale_backbone_lr
from softmaxfree.tasks.optimization import (
    LrScaling,
    ScheduleName,
    check_optimizer,
    create_optimizer,
    create_schedule,
    epochs_done,
    optimizer_arguments,
    scaled_lr,
)
from softmaxfree.tasks.sharding import broadcast_buffers, shard
from softmaxfree.tasks.sources import Source, read_source
from softmaxfree.tasks.start import Started, start, told_of_timm
from softmaxfree.weights import complete

__all__ = ["AbstractTask"]

_AT_RANDOM = " with random weights"  # a frozen backbone, in what `loaded` says
_SHOWN = 4  # classes named in a line
_log = logging.getLogger(__name__)
_HIGHEST = dict.fromkeys(("lr", "weight_decay", "warmup_epochs", "warmup_lr", "min_lr", "mixup", "cutmix"), math.inf)
_HIGHEST["label_smoothing"] = 1.0  # all from 0 on


class AbstractTask(AbstractCurvatureTask):
    """Trains `self.model`, which a subclass builds by its arguments `name`, `num_classes` and `model_args`.

    Args:
        opt: Name of the optimizer, one of timm's or pytorch-optimizer's; "lookahead_" or "orthograd_" before it wraps
            it.
        opt_args: Further arguments of the optimizer, such as `betas`; null for none.
        lr: Peak learning rate.
        lr_scaling: How `lr` follows the number of images in an update (batch x processes x accumulated steps).
        base_batch: Number of images in an update for which `lr` is meant; used where `lr_scaling` is not none.
        weight_decay: Weight decay of the optimizer; biases, norms and what the model exempts have none.
        layer_decay: Factor on the learning rate from each layer to the one before it; null for the same rate in all.
        sched: Shape of the decay of the learning rate, one of timm's schedules.
        warmup_epochs: Length of the linear warm-up of the learning rate, in epochs; a fraction is allowed.
        warmup_lr: Learning rate at the start of the warm-up.
        min_lr: Learning rate at the end of the decay.
        decay_milestones: Epochs after which the schedule "multistep" lowers the learning rate; null for the others.
        decay_rate: Factor by which the schedule "multistep" lowers the learning rate; for "poly" its power.
        ema_decay: Decay of the moving average of the weights, from 0 to 1. The average is validated and kept; null for
            no average.
        ema_warmup: Whether the average starts shorter than `ema_decay` says: over the last tenth of the updates so far.
            Without it a short run keeps the first weights.
        init_from: Weights to start from: a run's folder, a checkpoint, a file or folder of weights, a name of timm
            or of a hub, or "pretrained" for the published weights of `name`; null starts from random weights. A head
            for other classes is made anew.
        freeze: Part of the model that does not train: "backbone" trains the head alone, with the backbone in
            evaluation mode; "none" trains all.
        backbone_lr_scale: Factor on the learning rate of the backbone's weights, on top of `layer_decay`.
    """

    monitor: ClassVar[str]
    """The metric that the best checkpoint has most of."""
    summary: ClassVar[dict[str, tuple[str, float, int]]]
    """Metrics of the final table, in order: label, factor and digits by key."""
    loaded = ""
    """What was loaded to start from, left out and made anew; in one line; "" from scratch."""
    fewest_classes: ClassVar[int] = 2
    of_timm: ClassVar[bool] = True  # and of images, whatever `name` is
    source_reader: Callable[..., Source] = staticmethod(read_source)

    def __init__(
        self,
        opt: str = "adamw",
        opt_args: dict[str, Any] | None = None,
        lr: float = 1e-3,
        lr_scaling: LrScaling = "none",
        base_batch: int = 1024,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        sched: ScheduleName = "cosine",
        warmup_epochs: float = 5,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        decay_milestones: list[float] | None = None,
        decay_rate: float = 0.1,
        ema_decay: float | None = None,
        ema_warmup: bool = True,
        init_from: str | None = None,
        freeze: Literal["none", "backbone"] = "none",
        backbone_lr_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["init_from"])  # those of the subclass too; a checkpoint needs no other file
        if (given := self.hparams.get("num_classes", self.fewest_classes)) < self.fewest_classes:
            raise InputError(f"model.num_classes must be {self.fewest_classes} or more, got {given}")
        for name, highest in _HIGHEST.items():
            if not 0 <= self.hparams.get(name, 0) <= highest:
                raise InputError(f"model.{name} must be 0 to {highest:g}, got {self.hparams[name]}")
        check_optimizer(opt)
        require(freeze in ("none", "backbone"), "model.freeze", freeze, "none or backbone")
        require(0 < backbone_lr_scale < math.inf, "model.backbone_lr_scale", backbone_lr_scale, "above 0 and finite")
        allowed = "a file, a folder, a name or null"
        require(init_from is None or bool(init_from.strip()), "model.init_from", init_from, allowed)
        self._init_from = init_from
        self._first: tuple[list[str], Started | None] = [], None  # classes of what was loaded
        with self.naming_arguments():
            self._architecture = self.architecture()

    @classmethod
    def shared_arguments(cls) -> Collection[str] | None:
        """Return the arguments that mean the same in all networks; None where that is not known, as of timm's."""
        return None

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """Return name and arguments that make the same model from no file, which a checkpoint notes."""
        return standalone(self.hparams["name"], self.hparams["model_args"])

    @property
    def num_trained(self) -> int:
        """Number of parameters that train."""
        return sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)

    def start_args(self, model_args: dict[str, Any] | None) -> dict[str, Any]:
        """Return the arguments of the model, with timm's weights if the run starts from them.

        Args:
            model_args: those that were given.

        Returns:
            The arguments.

        Raises:
            InputError: they name other weights than `init_from`.
        """
        arguments = dict(model_args or {})
        if self._init_from and (other := [key for key in ("pretrained", "checkpoint_path") if arguments.get(key)]):
            raise InputError(
                f"model.init_from and model.model_args.{other[0]} both say where weights come from: give one"
            )
        return arguments | ({"pretrained": True} if self._init_from == "pretrained" else {})

    @property
    def first_weights(self) -> str | None:
        """Path or name of the weights that it starts from; None of random ones."""
        arguments = self.hparams.get("model_args") or {}
        given = self._init_from or arguments.get("checkpoint_path")
        return self.hparams["name"] if given == "pretrained" or arguments.get("pretrained") else given

    @contextmanager
    def naming_arguments(self) -> Iterator[None]:
        """Let an error that begins with an argument of the task name it as the command does: `model.name`.

        Yields:
            Nothing.

        Raises:
            InputError: the error.
        """
        try:
            yield
        except NoWeightsError as error:
            key = "init_from" if self._init_from else "model_args.pretrained"
            raise InputError(f"model.{key}: {error.on_command_line('--init-from')}") from error
        except InputError as error:
            first = re.match(r"\w+", str(error))
            if first and first[0] in self.hparams:
                raise InputError(f"model.{error}") from error
            raise

    def start(self) -> None:
        """Load what the run starts from, and freeze what does not train; a subclass calls it once it has its model.

        Raises:
            InputError: the weights cannot be read, or are of another architecture.
        """
        h = self.hparams
        if self._init_from == "pretrained":
            self.loaded = told_of_timm(self.model, h["num_classes"])
        elif self._init_from:
            source = self.source_reader(self._init_from)
            started = start(self.model, h["name"], h["num_classes"], source)
            self.loaded, self._first = started.told, (source.class_names, started)
        if h["freeze"] == "backbone":
            freeze_backbone(self.model)
            random = "" if self.first_weights else _AT_RANDOM
            frozen = f"the backbone is frozen{random}, {self.num_trained:,} parameters train"
            self.loaded = "; ".join(filter(None, (self.loaded, frozen)))
            self.train(self.training)
            warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training")  # as intended

    def train(self, mode: bool = True) -> "AbstractTask":
        """Set training or evaluation mode; a frozen backbone stays in evaluation mode: its statistics do not move."""
        super().train(mode)
        if self.hparams["freeze"] == "backbone":
            for module in frozen_modules(self.model):
                module.training = False
        return self

    @property
    def start_remarks(self) -> list[str]:
        """What somebody who reads the scores should know of what the model started from, a sentence each."""
        if _AT_RANDOM not in self.loaded:
            return []
        return ["model.freeze is backbone, but the backbone has random weights, and keeps them: give model.init_from"]

    @property
    def class_scores(self) -> dict[str, Tensor]:
        """Scores of each class after a validation, by what they are called; none unless a task has them."""
        return {}

    def setup(self, stage: str) -> None:
        """Compare the model with the data.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            InputError: the data has another number of classes.
        """
        num_classes = self.hparams["num_classes"]
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if classes not in (None, num_classes):
            raise InputError(f"model.num_classes is {num_classes}, but the data has {classes} classes")
        self._renew_head()

    def check_names(self, trained: Sequence[str]) -> None:
        """Compare the classes of weights with those of the data; their order is what labels stand for.

        Args:
            trained: names in the order of labels; empty if unknown.

        Raises:
            InputError: they differ.
        """
        names = [str(name) for name in getattr(getattr(self._trainer, "datamodule", None), "class_names", None) or ()]
        require_same_names([str(name) for name in trained], names)

    def _renew_head(self) -> None:
        """Make the layers of the classes anew where the weights had as many, but others than the data."""
        (theirs, started), self._first = self._first, ([], None)
        names = [str(name) for name in getattr(getattr(self._trainer, "datamodule", None), "class_names", None) or ()]
        if started and started.first and theirs and names and theirs != names:
            self.model.load_state_dict({**self.model.state_dict(), **started.first})
            more = ", ..." if len(theirs) > _SHOWN else ""
            others = f", as the classes there are others ({', '.join(theirs[:_SHOWN])}{more})"
            self.loaded = self.loaded.replace(started.told, started.told_anew + others)

    def configure_model(self) -> None:
        """Shard the model where the strategy is Lightning's `ModelParallelStrategy`."""
        if self._trainer is not None and isinstance(self._trainer.strategy, ModelParallelStrategy):
            shard(self.model, self._trainer.strategy)

    def on_after_backward(self) -> None:
        """Keep the buffers of sharded models alike, which the strategy leaves to each process."""
        if isinstance(self.model, FSDPModule):
            broadcast_buffers(self.model)

    def configure_optimizers(self) -> Any:
        """Return optimizer and schedule of timm.

        Returns:
            Both, as the Trainer takes them.

        Raises:
            InputError: the optimizer does not take these arguments, or gradients of several batches together.
        """
        h = self.hparams
        lr = scaled_lr(h["lr"], h["lr_scaling"], h["base_batch"], self.trainer)
        arguments = optimizer_arguments(h)
        require_single_batches(h["opt"], self.trainer)
        optimizer = create_optimizer(self.model, h["opt"], lr, arguments)
        scale_backbone_lr(optimizer, self.model, h["backbone_lr_scale"])
        schedule = create_schedule(
            optimizer,
            h["sched"],
            self.trainer,
            warmup_epochs=h["warmup_epochs"],
            warmup_lr=h["warmup_lr"],
            min_lr=h["min_lr"],
            decay_milestones=h["decay_milestones"],
            decay_rate=h["decay_rate"],
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
            InputError: the decay is none, or weights are sharded or not in 32 bits, where they cannot be averaged.
        """
        decay = self.hparams["ema_decay"]
        if decay is None:
            return []
        precision = "32-true" if self._trainer is None else str(self._trainer.precision)
        require_averaged(decay, self._sharded(), precision)
        # of `configure_model`, which does nothing then
        warnings.filterwarnings("ignore", ".*WeightAveraging callback with a model that overrides")
        return [Average(decay, self.hparams["ema_warmup"])]

    def on_train_start(self) -> None:
        """Tell what the run is too short for."""
        for remark in self.start_remarks:
            rank_zero_warn(remark)
        for line in too_short_for(self.trainer, dict(self.hparams)):
            self._tell(line)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note all that is needed to use the weights, without the files that the run started from.

        Args:
            checkpoint: what is to be saved.

        Raises:
            InputError: a loss or a weight is not finite, so that no good checkpoint is replaced by a broken one.
        """
        self._check_losses()
        self._check_weights()
        name, arguments = self._architecture
        for module in self.model.modules():
            if isinstance(module, AbstractBackbone):
                arguments = module.told_in(arguments)
        arguments = {**checkpoint["hyper_parameters"], "name": name, "model_args": arguments}
        checkpoint["hyper_parameters"] = arguments
        checkpoint["task"] = type(self).__name__
        checkpoint["of_timm"] = self.of_timm
        checkpoint["loaded"] = self.loaded
        data = getattr(self._trainer, "datamodule", None)
        checkpoint.update({key: getattr(data, key) for key in ("data_config", "class_names") if hasattr(data, key)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model; leave the schedule to the arguments of this run.

        Args:
            checkpoint: what the Trainer saved.

        Raises:
            InputError: its weights do not fit, its classes are others than those of the data, or a run is to go on with
                another optimizer.
        """
        rename_kept(checkpoint.get("callbacks", {}), self.monitor)
        self.loaded = checkpoint.get("loaded", "")
        data = getattr(self._trainer, "datamodule", None)
        self.check_names(checkpoint.get("class_names") or ())
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            before, now = checkpoint["hyper_parameters"].get("opt"), self.hparams["opt"]
            if before != now:
                raise InputError(f"model.opt is {now}, but the run has the state of {before}, by which it goes on")
            if _text(checkpoint.get("data_config")) != _text(getattr(data, "data_config", None)):
                # scores of images of another size are no measure
                checkpoint.get("callbacks", {}).pop("best checkpoint", None)
                _log.warning("images are prepared in another way than before: the best score starts anew")
        for key in checkpoint.keys() & {"state_dict", "current_model_state"}:
            checkpoint[key] = complete(checkpoint[key], checkpoint)
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


def _text(config: Any) -> str:
    return json.dumps(config, sort_keys=True, default=str)
