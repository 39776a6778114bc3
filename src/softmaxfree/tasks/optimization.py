"""Learning rates: scaled to the batch, and scheduled by timm under the Trainer."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from timm.optim import Muon, OptimInfo, OptimizerRegistry, create_optimizer_v2, list_optimizers, muon
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from softmaxfree.arguments import require_known
from softmaxfree.errors import InputError
from softmaxfree.machine import has_fast_bfloat16

__all__ = [
    "LrScaling",
    "ScheduleName",
    "check_optimizer",
    "create_optimizer",
    "create_schedule",
    "epochs_done",
    "optimizer_arguments",
    "scaled_lr",
]

_ORTHOGONALIZE = muon.zeropower_via_newtonschulz
_SMALL_MATRIX = 128  # rows or columns up to which a processor multiplies float32 faster than bfloat16
_DROPPED = {"betas", "eps", "momentum"}  # by timm without a word, where an optimizer has none
_ORTHOGRAD = "orthograd"
_WRAPPERS = ("lookahead_", f"{_ORTHOGRAD}_")
# of pytorch-optimizer: they want another training loop, weights told apart by hand, or weights of one shape
_OTHER_LOOPS = (
    *("lomo", "adalomo", "adammini", "lbfgs", "bsam", "demo", "lorarite", "spectralsphere"),
    *("adago", "distributedmuon", "muonclip", "normuon"),
    *("schedulefreeadamw", "schedulefreeradam", "schedulefreesgd"),
)

LrScaling = Literal["none", "linear", "sqrt"]
ScheduleName = Literal["cosine", "tanh", "wsd", "poly", "multistep", "constant"]


def scaled_lr(lr: float, scaling: LrScaling, base_batch: int, trainer: Trainer) -> float:
    """Return the peak learning rate for the images of one update: batch x processes x accumulated steps.

    Args:
        lr: the rate that belongs to `base_batch`.
        scaling: how the rate follows the batch.
        base_batch: images an update.
        trainer: tells processes and accumulation; its data module tells `batch_size`.

    Returns:
        The rate.

    Raises:
        InputError: the rate shall be scaled, but no data module tells its `batch_size`.
    """
    if scaling == "none":
        return lr
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if batch_size is None:
        raise InputError(f"model.lr_scaling {scaling} needs a data module with a batch_size")
    ratio = batch_size * trainer.world_size * trainer.accumulate_grad_batches / base_batch
    return lr * (ratio if scaling == "linear" else math.sqrt(ratio))


def check_optimizer(name: str) -> None:
    """Raises InputError, with the nearest names, where neither timm nor pytorch-optimizer has such an optimizer."""
    *wrappers, base = name.lower().split("_")
    for wrapper in wrappers:
        require_known("model.opt", f"{wrapper}_", _WRAPPERS)
    if base not in list_optimizers():
        require_known("model.opt", base, [*map(str, list_optimizers()), *_further_optimizers()])
    if f"{_ORTHOGRAD}_" in name.lower():
        _pytorch_optimizer()


def create_optimizer(model: nn.Module, name: str, lr: float, arguments: dict[str, Any]) -> Optimizer:
    """Return an optimizer for the weights that train.

    Args:
        model: whose weights are trained; tells what does not decay, and its layers.
        name: of the optimizer: one of timm, or else of pytorch-optimizer; "lookahead_" or "orthograd_" before it wraps
            it.
        lr: its rate.
        arguments: further ones of `timm.optim.create_optimizer_v2`, or of the optimizer.

    Returns:
        The optimizer.

    Raises:
        InputError: there is no such optimizer, or it does not take these arguments.
    """
    check_optimizer(name)
    wrapped = name.lower().split("_")
    orthogonal = _ORTHOGRAD in wrapped
    base = "_".join(part for part in wrapped if part != _ORTHOGRAD)
    create: Any = create_optimizer_v2
    if wrapped[-1] not in list_optimizers():  # weights in timm's groups, whatever the optimizer
        registry = OptimizerRegistry()
        cls = _pytorch_optimizer().load_optimizer(wrapped[-1])
        registry.register(OptimInfo(wrapped[-1], cls, has_betas=True))
        create = registry.create_optimizer
    try:
        optimizer = create(model, base, lr=lr, **arguments)
    except InputError:
        raise
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(f"model.opt {name!r} with {arguments}: {error}") from error
    inner = getattr(optimizer, "_base_optimizer", optimizer)  # of a lookahead
    if unused := sorted(key for key in _DROPPED & arguments.keys() if key not in inner.defaults):
        raise InputError(f"model.opt {name!r} has no {unused[0]}: leave it out of model.opt_args")
    _widen(inner)
    return _pytorch_optimizer().OrthoGrad(optimizer) if orthogonal else optimizer


def optimizer_arguments(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an optimizer, from those of a task.

    Args:
        hparams: of the task.

    Returns:
        The arguments.

    Raises:
        InputError: `opt_args` has what the task has an argument for.
    """
    given = hparams["opt_args"] or {}
    own = {key: hparams[key] for key in ("weight_decay", "layer_decay")}
    if twice := [key for key in ("lr", *own) if key in given]:
        raise InputError(f"model.opt_args has {twice[0]}, {given[twice[0]]}: give model.{twice[0]} in its place")
    return {**own, **given}


def _widen(optimizer: Any) -> None:
    """Let Muon compute its Newton-Schulz steps in float32 where bfloat16 is slower, and would be most of a training.

    That is where bfloat16 is emulated, and on any processor for small matrices. timm has no argument for it, so that
    its function is exchanged for the time of a step.
    """
    if not isinstance(optimizer, Muon):
        return
    device = optimizer.param_groups[0]["params"][0].device
    fast = has_fast_bfloat16(device)
    if fast and device.type != "cpu":
        return
    orthogonalize = partial(_orthogonalize, widest=_SMALL_MATRIX if fast else math.inf)
    optimizer.register_step_pre_hook(lambda *_: _orthogonalize_by(orthogonalize))
    optimizer.register_step_post_hook(lambda *_: _orthogonalize_by(_ORTHOGONALIZE))


def _orthogonalize(matrix: torch.Tensor, *args: Any, widest: float, **kwargs: Any) -> torch.Tensor:
    kwargs["dtype"] = torch.float32 if min(matrix.shape[-2:]) <= widest else torch.bfloat16
    return _ORTHOGONALIZE(matrix, *args, **kwargs)


def _orthogonalize_by(function: Callable[..., torch.Tensor]) -> None:
    muon.zeropower_via_newtonschulz = function


def _further_optimizers() -> list[str]:
    return [name for name in _pytorch_optimizer().get_supported_optimizers() if name not in _OTHER_LOOPS]


def _pytorch_optimizer() -> Any:
    try:
        import pytorch_optimizer  # which takes a second
    except ModuleNotFoundError as error:
        raise InputError("model.opt: pytorch-optimizer is not installed: pip install 'softmaxfree[train]'") from error
    return pytorch_optimizer


def create_schedule(
    optimizer: Optimizer,
    name: ScheduleName,
    trainer: Trainer,
    *,
    warmup_epochs: float,
    warmup_lr: float,
    min_lr: float,
    decay_milestones: Sequence[float] | None = None,
    decay_rate: float = 0.1,
) -> Any:
    """Return a schedule of timm over the trainer's epochs; only timm's know the `lr_scale` of layer decay.

    Its clock is epochs, of which an update is a fraction (`epochs_done`). So the length of an epoch need not
    be known here: to ask the Trainer for it would start the loaders before a resumed run knows its epoch.

    Args:
        optimizer: whose rates are set.
        name: shape of the decay.
        trainer: tells `max_epochs`.
        warmup_epochs: length of the linear warm-up.
        warmup_lr: where it starts.
        min_lr: where the decay ends.
        decay_milestones: epochs after which "multistep" lowers the rate.
        decay_rate: by which factor "multistep" does; the power of "poly".

    Returns:
        The schedule.

    Raises:
        InputError: the trainer has no number of epochs, or too few for the schedule, or "multistep" no milestones.
    """
    if not trainer.max_epochs or trainer.max_epochs < 0:
        raise InputError(
            f"trainer.max_epochs must be a whole number, 1 or more, since the learning rate follows it; got "
            f"{'nothing' if trainer.max_epochs is None else trainer.max_epochs}"
        )
    if name == "multistep" and not decay_milestones:
        raise InputError("model.decay_milestones must be given for model.sched 'multistep', such as [8, 11]")
    in_epochs: Any = {  # whose fractions timm's types do not know
        "warmup_epochs": warmup_epochs,
        "decay_milestones": [epoch + 1 for epoch in decay_milestones or ()],  # timm's are one early
    }
    rates: Any = {"warmup_lr": warmup_lr, "min_lr": min_lr, "decay_rate": decay_rate}
    try:
        schedule, _ = create_scheduler_v2(optimizer, name, trainer.max_epochs, **rates, **in_epochs)
    except ValueError as error:  # of "wsd", whose parts need whole epochs
        raise InputError(
            f"model.sched {name} does not fit trainer.max_epochs {trainer.max_epochs} and model.warmup_epochs "
            f"{warmup_epochs:g}: {error}"
        ) from error
    return schedule


def epochs_done(trainer: Trainer) -> float:
    """Return the updates done so far, in epochs."""
    return trainer.global_step / math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
