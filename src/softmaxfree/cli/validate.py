"""`softmaxfree validate`: measures weights on a recipe's data."""

from collections.abc import Sequence

from torch import Tensor

from softmaxfree.cli.recipe import create_trainer, load_job
from softmaxfree.cli.table import print_table, summary_rows
from softmaxfree.tasks.checkpoints import load_weights

__all__ = ["run"]


def run(recipe: str, checkpoint: str, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Print the metrics of a checkpoint, and of a dense task those of each class.

    Args:
        recipe: a name of `softmaxfree/recipes`, or a path to a YAML file; tells model and data.
        checkpoint: `best.ckpt` or the folder `best` of a run, or any weights that timm loads into the model.
        overrides: `--section.key=value`, for any key of the recipe.

    Returns:
        The metrics.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: recipe, key or value are not as they must be, or the weights are those of another model.
    """
    job = load_job(recipe, overrides)
    load_weights(job.task.model, checkpoint)
    trainer = create_trainer({**job.trainer, "logger": False, "enable_checkpointing": False})
    metrics = trainer.validate(job.task, datamodule=job.data, verbose=False)[0]
    if trainer.is_global_zero:
        print_table((checkpoint, "value"), summary_rows(job.task, metrics))
        if scores := job.task.class_scores:
            lines = zip(job.data.class_names, *(_percent(values) for values in scores.values()), strict=True)
            print()
            print_table(("class", *(f"{label} (%)" for label in scores)), [list(line) for line in lines])
    return dict(metrics)


def _percent(values: Tensor) -> list[str]:
    return [f"{100 * value:.2f}" for value in values.tolist()]
