"""`softmaxfree validate`: measures weights on a recipe's data."""

from collections.abc import Sequence

from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from softmaxfree.cli.recipe import as_list, create_trainer, load_job, read_recipe
from softmaxfree.cli.recorded import trained_names, with_record
from softmaxfree.cli.table import print_table, summary_rows
from softmaxfree.tasks.checkpoints import load_weights

__all__ = ["run"]


def run(recipe: str, checkpoint: str, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Print the metrics of a checkpoint, and of a dense task those of each class.

    Model, image size and preparation are those that the checkpoint records; an option changes them.

    Args:
        recipe: a name of `softmaxfree/recipes`, or a path to a YAML file; tells the data.
        checkpoint: `best.ckpt` or the folder `best` of a run, or any weights that timm loads into the model.
        overrides: `--section.key=value`, for any key of the recipe.

    Returns:
        The metrics.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        InputError: recipe, key or value are not as they must be, or the weights are those of another model.
    """
    content, changes = with_record(recipe, read_recipe(recipe), checkpoint)
    job = load_job(recipe, overrides, content, training=False)
    load_weights(job.task.model, checkpoint)
    names = trained_names(checkpoint)
    compare = LambdaCallback(on_validation_start=lambda _, task: task.check_names(names))
    callbacks = [*as_list(job.trainer["callbacks"]), compare]
    quiet = {"logger": False, "enable_checkpointing": False, "callbacks": callbacks}
    trainer = create_trainer({**job.trainer, **quiet})
    if changes and trainer.is_global_zero:
        print(f"as {checkpoint} records, not as the recipe says: {', '.join(changes)}")
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
