"""A task with its weights from a checkpoint alone."""

from pathlib import Path
from typing import Any

from softmaxfree.errors import InputError
from softmaxfree.tasks.checkpoints import load_state
from softmaxfree.tasks.classification import ClassificationTask
from softmaxfree.tasks.detection import DetectionTask
from softmaxfree.tasks.segmentation import SegmentationTask
from softmaxfree.tasks.sharding import is_sharded, read_sharded
from softmaxfree.weights import Recorded, read_record, read_weights

__all__ = ["load_task", "register_task"]

_TASKS: dict[str, Any] = {cls.__name__: cls for cls in (ClassificationTask, DetectionTask, SegmentationTask)}


def register_task(task: type) -> None:
    """Let checkpoints of a task be loaded that is defined above this package, such as those of bags.

    Args:
        task: a subclass of `AbstractTask`, whose name checkpoints note.
    """
    _TASKS[task.__name__] = task


def load_task(path: str | Path, kind: str | None = None) -> tuple[Any, Recorded]:
    """Build the task of a Trainer's checkpoint, with its weights and without any other file.

    Args:
        path: the `.ckpt`.
        kind: "classification", "detection" or "segmentation"; None takes any.

    Returns:
        The LightningModule, in evaluation mode and at the image size of its training, and what the checkpoint says of
        it.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read safely, or is of another task.
    """
    path = Path(path)
    weights = None if is_sharded(path) else read_weights(path)  # first: its errors tell more of a file that is none
    record = read_record(path)
    if record.task not in _TASKS or (kind and record.task.lower() != f"{kind}task"):
        wanted = f"--task {kind} needs a checkpoint of such a task, but " if kind else ""
        raise InputError(f"{wanted}{path} is of {record.task}")
    task = _TASKS[record.task](**record.arguments)
    if isinstance(task, DetectionTask):
        task.model.set_size(*record.data_config["size"])
    load_state(task.model, read_sharded(path) if weights is None else weights, str(path))
    return task.eval(), record
