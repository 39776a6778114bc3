"""What is wrong with all predictions of a validation together, and what to try."""

from typing import TYPE_CHECKING

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from softmaxfree.printing import printable

if TYPE_CHECKING:
    from softmaxfree.tasks.training import AbstractTask

__all__ = ["nothing_found", "one_class_for_all"]

_FEW_EPOCHS = 10  # within which a model from scratch may not have begun to tell classes apart


def one_class_for_all(confusion: Tensor, unit: str, task: "AbstractTask") -> str:
    """Return a line where one class is given to all samples though there are others, else "".

    Args:
        confusion: `(C, C)` counts, a row a true class, a column a predicted one.
        unit: what a sample is, such as "image".
        task: tells what was tried.

    Returns:
        The line, without its end.
    """
    there, given = confusion.sum(1), confusion.sum(0)
    if (there > 0).sum() < 2 or (given > 0).sum() != 1:
        return ""
    number = int(given.argmax())
    share = there[number].item() / confusion.sum().item()
    return (
        f"every {unit} of the validation is given one class, {_name(task, number)!r}, which {100 * share:.1f} % of "
        f"them are: try {_more_epochs(task)}{_rates(task)} or class weights (--model.class_weights auto)"
    )


def nothing_found(found: int, task: "AbstractTask") -> str:
    """Return a line where nothing was found in any image, unless the first half of a training goes on, else "".

    Args:
        found: objects in all images of a validation.
        task: tells what was tried.

    Returns:
        The line, without its end.
    """
    trainer = task.trainer
    early = trainer.state.fn == TrainerFn.FITTING and 2 * (trainer.current_epoch + 1) <= (trainer.max_epochs or 0)
    if found or early:
        return ""
    return f"nothing is found in any image of the validation: try more epochs, {_rates(task)}"


def _more_epochs(task: "AbstractTask") -> str:
    epochs = task.trainer.max_epochs
    return f"more epochs (trainer.max_epochs is {epochs}), " if epochs and 0 < epochs < _FEW_EPOCHS else ""


def _rates(task: "AbstractTask") -> str:
    lr, warmup = task.hparams["lr"], task.hparams["warmup_epochs"]
    return f"another model.lr (it is {lr:g}), a longer warm-up (model.warmup_epochs is {warmup:g})"


def _name(task: "AbstractTask", number: int) -> str:
    names = getattr(getattr(task.trainer, "datamodule", None), "class_names", None) or ()
    return printable(str(names[number])) if number < len(names) else str(number)
