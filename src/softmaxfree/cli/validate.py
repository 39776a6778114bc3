"""`softmaxfree validate`: measures weights on a recipe's data."""

from collections.abc import Sequence

from softmaxfree.cli.recipe import create_trainer, load_job
from softmaxfree.cli.table import print_table
from softmaxfree.tasks.checkpoints import load_weights

__all__ = ["run"]


def run(recipe: str, checkpoint: str, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Print the metrics of a checkpoint.

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
        shown = {
            "val/top1": ("top-1 (%)", 100, 2),
            "val/top5": ("top-5 (%)", 100, 2),
            "val/loss": ("loss", 1, 4),
        }
        rows = [(label, f"{scale * metrics[key]:.{digits}f}") for key, (label, scale, digits) in shown.items()]
        print_table((checkpoint, "value"), rows)
    return dict(metrics)
