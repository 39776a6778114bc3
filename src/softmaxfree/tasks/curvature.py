"""Optimizers that ask for second derivatives: gradients with a graph of their own."""

import warnings
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from softmaxfree.errors import InputError
from softmaxfree.tasks.watching import AbstractWatchedTask

_SECOND_ORDER = ("adahessian", "sophiah")


def needs_hessian(opt: str) -> bool:
    """Returns whether an optimizer asks for second derivatives."""
    return opt.lower().split("_")[-1] in _SECOND_ORDER


def require_single_batches(opt: str, trainer: Trainer) -> None:
    """Raises InputError where gradients of several batches are to be added that need a graph each."""
    batches = trainer.accumulate_grad_batches
    if needs_hessian(opt) and batches != 1:
        raise InputError(f"trainer.accumulate_grad_batches must be 1 with model.opt {opt}, got {batches}")


class AbstractCurvatureTask(AbstractWatchedTask):
    """Gives the optimizer `opt` among the hyperparameters the second derivatives that it asks for."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients, where need be with a graph of their own."""
        if needs_hessian(self.hparams["opt"]):
            kwargs["create_graph"] = True
            warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True")  # the next step frees it
        super().backward(loss, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Run a step, forward pass and all, where need be with softmax attention that has second derivatives."""
        with sdpa_kernel(SDPBackend.MATH) if needs_hessian(self.hparams["opt"]) else nullcontext():
            super().optimizer_step(*args, **kwargs)
