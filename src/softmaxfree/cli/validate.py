"""`softmaxfree validate`: measures weights on a recipe's data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback
from torch import Tensor

from softmaxfree.cli.checkpoint import find_checkpoint
from softmaxfree.cli.device import trainer_options
from softmaxfree.cli.recipe import as_list, create_trainer, load_job, read_recipe
from softmaxfree.cli.recorded import trained_names, with_record
from softmaxfree.cli.table import print_table, summary_rows
from softmaxfree.data.trained import measured_before
from softmaxfree.report.page import ABSENT
from softmaxfree.tasks.checkpoints import load_weights
from softmaxfree_cli.recipes import recipe_and_weights

__all__ = ["run"]


def run(
    recipe: str, overrides: Sequence[str] = (), *, checkpoint: str | None = None, device: str = "auto"
) -> dict[str, float]:
    """Measure weights: the scores on the validation data.

    Of a run the folder is enough. Other weights need a recipe, which tells the data. Model, image size and
    preparation are those that the checkpoint records. Every key of the recipe is an option, which changes them:
    `softmaxfree validate RECIPE --help` lists them. Of a dense task the scores of each class are printed too.

    Args:
        recipe: The folder of a run; or, together with a checkpoint, a recipe of the list below or a YAML file.
        overrides: `--section.key=value`, for any key of the recipe.
        checkpoint: The weights: a run's `best.ckpt`, its folder `best`, or any that timm loads into the model. By
            default those of the run.
        device: Where to measure: `auto` (a GPU if there is one, or else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`. The
            same as `--trainer.accelerator` and `--trainer.devices`, which win.

    Returns:
        The metrics.

    Raises:
        FileNotFoundError: there is no such recipe or checkpoint, or none in the run.
        InputError: recipe, key or value are not as they must be, or the weights are those of another model.

    Examples:
        softmaxfree validate runs/digits/0
        softmaxfree validate runs/digits/0 --data.batch_size 16
        softmaxfree validate digits --checkpoint runs/digits/0/last.ckpt
        softmaxfree validate imagenet_soft_tiny --checkpoint best.ckpt --data.root /data/imagenet
    """
    path, weights = recipe_and_weights(recipe, checkpoint)
    checkpoint = find_checkpoint(weights)
    overrides = [*trainer_options(device), *overrides]
    content, changes = with_record(path, read_recipe(path), checkpoint, overrides)
    names = trained_names(checkpoint)
    job = load_job(path, overrides, content, training=False, known_classes=names)
    load_weights(job.task.model, checkpoint)
    folder = Path(checkpoint).parent
    compare = LambdaCallback(
        setup=lambda trainer, task, stage: task.check_names(names),  # before their number, which tells less
        on_validation_start=lambda trainer, task: _begin(trainer, folder),
    )
    callbacks = [own for own in as_list(job.trainer["callbacks"]) if not isinstance(own, Checkpoint)]  # saves nothing
    quiet = {"logger": False, "enable_checkpointing": False, "callbacks": [*callbacks, compare]}
    trainer = create_trainer({**job.trainer, **quiet})
    if changes and trainer.is_global_zero:
        print(f"as {checkpoint} records, not as the recipe says: {', '.join(changes)}")
    metrics = dict(trainer.validate(job.task, datamodule=job.data, verbose=False)[0])
    if getattr(job.data, "tests", False):
        metrics.update(*trainer.test(job.task, datamodule=job.data, verbose=False))
    if trainer.is_global_zero:
        print_table((checkpoint, "value"), summary_rows(job.task, metrics))
        if scores := job.task.class_scores:
            names = job.data.class_names or [str(i) for i in range(job.task.hparams["num_classes"])]
            lines = zip(names, *(_percent(values) for values in scores.values()), strict=True)
            print()
            of = "class of the validation" if getattr(job.data, "tests", False) else "class"
            print_table((of, *(f"{label} (%)" for label in scores)), [list(line) for line in lines])
    return metrics


def _begin(trainer: Trainer, run_dir: Path) -> None:
    """Tell what the scores are of, once the data is found to have the classes of the training."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    found = getattr(data, "found", "")
    if found and trainer.is_global_zero:
        print(f"data      {found}", flush=True)
    if trainer.is_global_zero and (told := measured_before(run_dir, data)):
        print(f"trained   {told}", flush=True)


def _percent(values: Tensor) -> list[str]:
    return [ABSENT if math.isnan(value) else f"{100 * value:.2f}" for value in values.tolist()]
