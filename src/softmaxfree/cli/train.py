"""`softmaxfree train`: runs a recipe, or goes on with a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from softmaxfree.atomic import atomic_write
from softmaxfree.cli.draw import draw_samples
from softmaxfree.cli.recipe import Job, create_trainer, load_job
from softmaxfree.cli.report import plot_confusion, plot_curve
from softmaxfree.cli.table import print_table, summary_rows
from softmaxfree.tasks import ClassificationTask
from softmaxfree.tasks.callbacks import EpochRecord, EpochSeed
from softmaxfree.tasks.checkpoints import AtomicCheckpointIO, load_weights
from softmaxfree.tasks.pretrained import save_pretrained
from softmaxfree.tasks.stopping import resumable

__all__ = ["run"]


def run(recipe: str, overrides: Sequence[str] = (), resume: str | None = None, out: str | None = None) -> Path:
    """Train, and leave in a numbered folder of `out` all that the run is worth.

    That is: `config.yaml` (the recipe with every default), `best.ckpt` and `last.ckpt`, `metrics.csv`, a
    TensorBoard log and `curve.png`; of a classifier `confusion_matrix.png`, and in `best/` the best weights for
    `timm.create_model("local-dir:...", pretrained=True)`; of a dense task `predictions.png`.

    Args:
        recipe: a name of `softmaxfree/recipes`, or a path to a YAML file.
        overrides: `--section.key=value`, for any key of the recipe.
        resume: a checkpoint, or "last" for that of the newest run in `out`. The run goes on in its folder,
            by the `config.yaml` that it finds there.
        out: folder of the runs; None is `runs/RECIPE`.

    Returns:
        The folder of the run.

    Raises:
        FileNotFoundError: there is no checkpoint to resume from.
        ValueError: recipe, key, value or data are not as they must be, or the loss is not finite.
        OSError: the disk is full.
    """
    folder = Path(out or f"runs/{Path(recipe).stem}")
    checkpoint = _checkpoint(resume, folder)
    if checkpoint is None:
        run_dir = folder / str(max(_numbers(folder), default=-1) + 1)
    else:
        run_dir = checkpoint.parent
        if (run_dir / "config.yaml").is_file():
            recipe = str(run_dir / "config.yaml")
    job = load_job(recipe, overrides)
    record, timer = EpochRecord(run_dir / "metrics.csv"), Timer(job.trainer["max_time"])
    begin = LambdaCallback(on_fit_start=lambda trainer, task: _begin(job, trainer, run_dir))
    trainer = _trainer(job, run_dir, [begin, EpochSeed(job.seed), record, timer])
    with resumable(run_dir):
        trainer.fit(job.task, datamodule=job.data, ckpt_path=checkpoint, weights_only=True)
        run_dir = trainer.strategy.broadcast(run_dir)  # each process had counted for itself
        if not job.trainer["fast_dev_run"]:  # which keeps nothing
            _finish(job, trainer, run_dir, record.rows, timer.time_elapsed("train"))
    return run_dir


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]


def _checkpoint(resume: str | None, folder: Path) -> Path | None:
    if resume is None:
        return None
    if resume != "last":
        path = Path(resume)
    elif numbers := [n for n in _numbers(folder) if (folder / str(n) / "config.yaml").is_file()]:
        path = folder / str(max(numbers)) / "last.ckpt"
    else:
        raise FileNotFoundError(f"there is no run in {folder} to resume")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path} to resume from; the first is written after an epoch")
    return path


def _trainer(job: Job, run_dir: Path, callbacks: list) -> Trainer:
    arguments = dict(job.trainer)
    best = ModelCheckpoint(
        run_dir,
        "best",
        monitor=job.task.monitor,
        mode="max",
        every_n_epochs=arguments["check_val_every_n_epoch"] or 1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    # Lightning's own `save_last` skips the epochs that are not the best.
    last = ModelCheckpoint(run_dir, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    arguments["callbacks"] = [*_list(arguments["callbacks"]), *callbacks, best, last]
    arguments["plugins"] = [*_list(arguments["plugins"]), AtomicCheckpointIO()]
    if arguments["logger"] is None:
        arguments["logger"] = TensorBoardLogger(run_dir.parent, name="", version=run_dir.name, default_hp_metric=False)
    return create_trainer(arguments)


def _begin(job: Job, trainer: Trainer, run_dir: Path) -> None:
    """Note what is run, once model and data are found to be good."""
    if trainer.is_global_zero:
        with atomic_write(run_dir / "config.yaml") as part:
            part.write_text(job.config, encoding="utf-8")
        print(f"{job.task.hparams['name']}, {trainer.world_size} process(es), into {run_dir}", flush=True)


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _finish(job: Job, trainer: Trainer, run_dir: Path, epochs: list[dict], seconds: float) -> None:
    """Measure the best weights and write what is left to write."""
    best = run_dir / "best.ckpt"
    trainer.loggers = []  # which hold the epochs alone
    metrics = trainer.validate(job.task, datamodule=job.data, ckpt_path=best, verbose=False, weights_only=True)[0]
    classifier = isinstance(job.task, ClassificationTask)
    confusion = job.task.confusion.compute() if classifier else None  # by all processes together
    if not trainer.is_global_zero:
        return
    whole = type(job.task)(**job.task.hparams)  # where the task's own model may be sharded
    load_weights(whole.model, best)
    plot_curve(epochs, job.task.summary, run_dir / "curve.png")
    if confusion is not None:
        save_pretrained(whole.model, run_dir / "best", job.data.data_config, job.data.class_names)
        plot_confusion(confusion, job.data.class_names, run_dir / "confusion_matrix.png")
    else:
        draw_samples(whole, job.data, run_dir / "predictions.png")
    parameters = sum(p.numel() for p in whole.model.parameters())
    best_row = max(epochs, key=lambda row: row.get(job.task.monitor, -1))
    rows = [
        *summary_rows(job.task, metrics),
        ("best epoch", f"{best_row['epoch'] + 1} of {len(epochs)}"),
        ("parameters (M)", f"{parameters / 1e6:.2f}"),
        ("training time (s)", f"{seconds:.1f}"),
    ]
    print_table(("best weights", "value"), rows)
    print(f"folder: {run_dir}")
