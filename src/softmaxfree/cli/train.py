"""`softmaxfree train`: runs a recipe, or goes on with a run."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from softmaxfree.atomic import atomic_write, write_csv
from softmaxfree.cli.device import trainer_options
from softmaxfree.cli.folds import PREDICTIONS, train_folds
from softmaxfree.cli.recipe import Job, as_list, create_trainer, load_job, read_recipe
from softmaxfree.cli.recorded import SPLIT, require_same, resumed_recipe
from softmaxfree.cli.table import print_table, summary_rows
from softmaxfree.data.trained import note_trained, require_trained
from softmaxfree.errors import InputError
from softmaxfree.machine import BFLOAT16_IS_EMULATED, has_fast_bfloat16
from softmaxfree.printing import printable
from softmaxfree.report import note_part
from softmaxfree.report import write as write_report
from softmaxfree.report.draw import draw_samples
from softmaxfree.tasks import ClassificationTask
from softmaxfree.tasks.callbacks import EpochRecord, EpochSeed
from softmaxfree.tasks.checkpoints import AtomicCheckpointIO, KeptCheckpoint
from softmaxfree.tasks.early_stopping import LateEarlyStopping
from softmaxfree.tasks.loading import load_task
from softmaxfree.tasks.pretrained import save_pretrained
from softmaxfree.tasks.stopping import resumable
from softmaxfree.weights import read_record

__all__ = ["run"]

_SHOWN = 8  # entries of a list in a line


class _Begun(NamedTuple):
    """What a run, or the rest of it, was begun with."""

    command: str
    resumed_from: int | None  # epochs that were done


def run(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    out: str | None = None,
    init_from: str | None = None,
    resume: str | None = None,
    folds: int | None = None,
    device: str = "auto",
) -> Path:
    """Train a model by a recipe.

    A run leaves all that it is worth in a numbered folder: `config.yaml` (the recipe with every default), `best.ckpt`
    and `last.ckpt`, `metrics.csv`, a TensorBoard log and `curve.png`; of a classifier `confusion_matrix.png`, and in
    `best/` the best weights for timm; of a dense task `predictions.png`; of bags `predictions.csv`, a row for each bag
    that validated or tested.

    Every key of a recipe is an option, its path dotted: `softmaxfree train RECIPE --help` lists them.

    Args:
        recipe: A name from the list below, or a YAML file of yours.
        overrides: `--section.key=value`, for any key of the recipe.
        out: Folder of the runs, each in one of its own: 0, 1, 2 ... By default `runs/RECIPE`.
        init_from: Weights to start from: a run, a checkpoint, a folder of timm's, a file that the authors released,
            the name of a model on the hub, or `pretrained`. The same as `--model.init_from`.
        resume: A checkpoint to go on from, or `last` for that of the newest run. The run goes on in its folder, by
            the `config.yaml` that it finds there and by what was edited in the recipe since it began. From a
            checkpoint that lies in no run's folder a new run goes on. With --folds it is the folder of the folds,
            or `last` for the newest: finished folds stay.
        folds: Number of folds, of bags: a run for each, on one device, in the folder `folds-N` beside other runs, and a
            table of their scores with mean and standard deviation, `folds.csv`; `predictions.csv` has the bags that
            each fold tested.
        device: Where to train: `auto` (a GPU if there is one, or else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`. The
            same as `--trainer.accelerator` and `--trainer.devices`, which win.

    Returns:
        The folder of the run, or of the folds.

    Raises:
        FileNotFoundError: there is no checkpoint to resume from.
        InputError: recipe, key, value or data are not as they must be, or the loss is not finite.
        OSError: the disk is full.

    Examples:
        softmaxfree train digits
        softmaxfree train digits --trainer.max_epochs 3 --data.batch_size 64
        softmaxfree train digits --model.lr 1e-3 --model.model_args.drop_path_rate 0.2
        softmaxfree train digits --resume last
        softmaxfree train classification --data.root photos/ --init-from pretrained
        softmaxfree train bags --data.features features_uni/ --data.labels labels.csv --folds 5
        softmaxfree train coco_retinanet_soft_norm_tiny --data.root /data/coco
        torchrun --nproc-per-node 8 -m softmaxfree train imagenet_soft_tiny --data.root /data/imagenet
    """
    start = [] if init_from is None else [f"--model.init_from={init_from}"]
    overrides = [*start, *trainer_options(device), *overrides]
    if resume is not None and any(option.startswith("--model.init_from=") for option in overrides):
        raise InputError("--resume goes on with the weights of its run: --init-from is for a new one; leave one out")
    folder = Path(out or f"runs/{Path(recipe).stem}")
    if folds is not None:
        return train_folds(recipe, overrides, folds, folder, resume, partial(_run, alone=True))
    checkpoint = _checkpoint(resume, folder)
    goes_on = checkpoint is not None and (checkpoint.parent / "config.yaml").is_file()
    with nullcontext(checkpoint.parent) if checkpoint and goes_on else _new_folder(folder) as run_dir:
        return _run(recipe, overrides, checkpoint, run_dir)


def _run(recipe: str, overrides: Sequence[str], checkpoint: Path | None, run_dir: Path, *, alone: bool = False) -> Path:
    content: Any = None
    given, told = None, list[str]()
    if checkpoint is None:
        given = read_recipe(recipe)
    else:
        content, given, told = resumed_recipe(recipe, checkpoint, overrides)
    job = load_job(recipe, overrides, content)
    if job.trainer["default_root_dir"] is not None:
        raise InputError(
            f"trainer.default_root_dir, {job.trainer['default_root_dir']}, would have no effect: --out is the folder "
            "of the runs"
        )
    done = read_record(checkpoint).epoch + 1 if checkpoint is not None else None
    epochs = job.trainer["max_epochs"]
    finished = done is not None and epochs is not None and done >= epochs >= 0
    if done is not None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        more = f"is of epoch {done} of {epochs}: what is left is measured; a larger trainer.max_epochs would go on"
        print(f"resume    {checkpoint}{f' {more}' if finished else f', from epoch {done + 1} on'}", flush=True)
    if finished and (run_dir / "config.yaml").is_file():
        require_same(run_dir, job.config)
    before = ((content or {}).get("trainer") or {}).get("max_epochs")
    follows = job.task.hparams["sched"] not in ("constant", "multistep")
    if not finished and follows and isinstance(before, int) and before != epochs:
        told.append(f"trainer.max_epochs was {before} and is {epochs} now: the learning rate follows it")
    record, timer = EpochRecord(run_dir / "metrics.csv"), Timer(job.trainer["max_time"])
    resumed = ["--resume", str(checkpoint)] if checkpoint else []
    begun = _Begun(shlex.join(["softmaxfree", "train", recipe, *overrides, *resumed]), done)
    begin = LambdaCallback(on_train_start=lambda trainer, task: _begin(job, given, told, trainer, run_dir, begun))
    trainer = _trainer(job, run_dir, [begin, EpochSeed(job.seed), record, timer])
    if alone and trainer.world_size > 1:
        raise InputError(f"--folds trains each fold in one process, got {trainer.world_size}: give --trainer.devices 1")
    with resumable(run_dir, fold=alone):
        trainer.fit(job.task, datamodule=job.data, ckpt_path=checkpoint, weights_only=True)
        run_dir = trainer.strategy.broadcast(run_dir)  # each process had counted for itself
        if finished:  # nothing has begun that would have told
            require_trained(run_dir, job.data)
            _tell(told, job, trainer, run_dir)
        if not job.trainer["fast_dev_run"]:
            _finish(job, trainer, run_dir, record.rows, timer.time_elapsed("train"), begun)
    return run_dir


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Makes the next numbered folder, which no other run takes; a run that leaves nothing in it takes it back."""
    number = max(_numbers(folder), default=-1) + 1
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # the other processes are told
    made = first and not folder.exists()
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                (folder / str(number)).mkdir()
                break
            except FileExistsError:  # another run began at the same moment
                number += 1
    try:
        yield folder / str(number)
    finally:
        begun = (folder / str(number) / "config.yaml").exists()
        if first and not begun:  # what is there is the head of a log
            shutil.rmtree(folder / str(number), ignore_errors=True)
        if made:
            with suppress(OSError):  # it holds a run
                folder.rmdir()


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("*") if path.name.isdigit()]


def _checkpoint(resume: str | None, folder: Path) -> Path | None:
    if resume is None:
        return None
    if resume != "last":
        path = Path(resume).expanduser()
        if (path / "config.yaml").is_file():  # the folder of a run
            path = path / "last.ckpt"
    elif numbers := [n for n in _numbers(folder) if (folder / str(n) / "config.yaml").is_file()]:
        path = folder / str(max(numbers)) / "last.ckpt"
    else:
        raise FileNotFoundError(f"there is no run in {folder} to resume")
    if not path.exists():  # a file, or a folder of shards
        others = [folder / str(n) / "last.ckpt" for n in sorted(_numbers(folder), reverse=True)]
        older = next((f"; an earlier run has {own}" for own in others if resume == "last" and own.exists()), "")
        raise FileNotFoundError(
            f"there is no checkpoint {path} to resume from; the first is written after an epoch{older}"
        )
    return path


def _trainer(job: Job, run_dir: Path, callbacks: list) -> Trainer:
    arguments = dict(job.trainer)
    # a score in the middle of an epoch is that of the weights there, not of those at its end
    by_epoch = arguments["check_val_every_n_epoch"] is not None and arguments["val_check_interval"] in (None, 1.0)
    best = KeptCheckpoint(run_dir, "best", monitor=job.task.monitor, at_epoch_end=by_epoch)
    # Lightning's own `save_last` skips the epochs that are not the best.
    last = KeptCheckpoint(run_dir, "last")
    stopping = [LateEarlyStopping(job.task.monitor, job.patience)] if job.patience else []
    arguments["callbacks"] = [*as_list(arguments["callbacks"]), *callbacks, *stopping, best, last]
    arguments["plugins"] = [*as_list(arguments["plugins"]), AtomicCheckpointIO()]
    if arguments["logger"] is None:
        arguments["logger"] = TensorBoardLogger(run_dir.parent, name="", version=run_dir.name, default_hp_metric=False)
    return create_trainer(arguments)


def _begin(
    job: Job,
    recipe: dict[str, Any] | None,
    told: Sequence[str],
    trainer: Trainer,
    run_dir: Path,
    begun: _Begun,
) -> None:
    """Note and tell what is run, once model, data and what a run goes on from are found to be good."""
    others: list[str] = []
    if trainer.is_global_zero and not job.trainer["fast_dev_run"]:  # which keeps nothing
        with atomic_write(run_dir / "config.yaml") as part:
            part.write_text(job.config, encoding="utf-8")
        if recipe is not None:  # by which a resumed run tells what was edited
            with atomic_write(run_dir / "recipe.yaml") as part:
                part.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        if rows := getattr(job.data, "split_rows", ()):
            write_csv(run_dir / SPLIT, [{"file": file, "split": split} for file, split in rows])
        note_part(run_dir, job.settings, *begun)
        others = note_trained(run_dir, job.data, begun.resumed_from is not None, job.task.first_weights)
        if others:
            job.data.remarks = [*job.data.remarks, *others]
    _tell([*told, *others], job, trainer, run_dir)


def _tell(told: Sequence[str], job: Job, trainer: Trainer, run_dir: Path) -> None:
    if not trainer.is_global_zero:
        return
    for line in [*told, *_first_lines(job, trainer, run_dir)]:
        print(printable(line), flush=True)


def _first_lines(job: Job, trainer: Trainer, run_dir: Path) -> Iterator[str]:
    """What was found in the data and what was decided."""
    yield f"data      {job.data.found}"
    parameters = sum(parameter.numel() for parameter in job.task.model.parameters())
    loaded = job.task.loaded or "from scratch"
    yield f"model     {job.task.hparams['name']}{_head(job.task)}, {parameters / 1e6:.2f} M parameters, {loaded}"
    settings = [f"{key} {_short(value)} ({why})" for key, (value, why) in job.settings.items()]
    rest = [f"all else as in {job.rest}"] if job.rest else [] if settings else ["all as in the recipe"]
    line = f"settings  {', '.join([*settings, *rest])}"
    yield "\n".join(textwrap.wrap(line, _columns(), subsequent_indent=" " * 10)) if sys.stdout.isatty() else line
    if "bf16" in str(trainer.precision) and not has_fast_bfloat16(trainer.strategy.root_device):
        yield f"caution   {trainer.precision} is slower here than 32-true: {BFLOAT16_IS_EMULATED}"
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    folder = "none: of a trial run nothing is kept" if job.trainer["fast_dev_run"] else run_dir
    yield f"run       {folder}{processes}"


def _head(task: Any) -> str:
    """The head of a dense task, with the widths that were decided for it."""
    name = task.hparams.get("head")
    if not name:
        return ""
    widths: Mapping[str, Any] = {}
    if task.hparams.get("head_args") == "auto":
        widths = task.model.head_args
    elif (task.hparams.get("detector_args") or {}).get("fpn_channels") == "auto":
        widths = {"fpn_channels": task.model.fpn_channels}
    told = ", ".join(f"{key} {_short(value)}" for key, value in widths.items())
    return f" with {name}{f' ({told})' if told else ''}"


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        more = [f"... {len(value)} in all"] if len(value) > _SHOWN else []
        return f"[{', '.join([*map(_short, value[:_SHOWN]), *more])}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finish(job: Job, trainer: Trainer, run_dir: Path, epochs: list[dict], seconds: float, begun: _Begun) -> None:
    """Measure the weights that are kept, and write what is left to write.

    They are the best; of a run without a validation the last.
    """
    validates = trainer.limit_val_batches != 0
    kept = "best" if (run_dir / "best.ckpt").exists() else "last"
    if not (run_dir / f"{kept}.ckpt").exists():
        raise InputError("no training step was run: see trainer.max_steps, max_epochs and limit_train_batches")
    trainer.loggers = []  # which hold the epochs alone
    checkpoint = run_dir / f"{kept}.ckpt"
    metrics: dict[str, Any] = {}
    if validates:
        arguments: dict[str, Any] = {"ckpt_path": checkpoint, "weights_only": True, "verbose": False}
        measured = trainer.validate(job.task, datamodule=job.data, **arguments)
        metrics.update(measured[0])
        if getattr(job.data, "tests", False):
            metrics.update(*trainer.test(job.task, datamodule=job.data, **arguments))
    classifier = isinstance(job.task, ClassificationTask)
    if validates and hasattr(job.task, "confusion"):
        job.task.confusion.compute()  # by all processes together; the result is kept for the report
    if not trainer.is_global_zero:
        return
    whole, record = load_task(checkpoint)  # the task's own model may be sharded
    if classifier:
        save_pretrained(whole.model, run_dir / kept, record.data_config, tuple(record.class_names))
    elif validates and job.task.of_timm:
        draw_samples(whole, job.data, run_dir / "predictions.png")
    elif validates:
        write_csv(run_dir / PREDICTIONS, job.task.prediction_rows(job.data))
    page = write_report(
        run_dir,
        job.task,
        job.data,
        epochs=epochs,
        metrics=metrics,
        kept=kept,
        best_epoch=record.epoch + 1 if kept == "best" else None,
        seconds=seconds,
        command=begun.command,
        settings=job.settings,
        resumed_from=begun.resumed_from,
    )
    parameters = sum(p.numel() for p in whole.model.parameters())
    rows = [*summary_rows(job.task, metrics)] if metrics else []
    if kept == "best":
        rows.append(("best epoch", f"{record.epoch + 1} of {len(epochs)}"))
    rows += [
        ("parameters (M)", f"{parameters / 1e6:.2f}"),
        ("training time (s)", f"{seconds:.1f}"),
    ]
    if kept == "last":
        print(f"no validation was run during the training: what is kept are its last weights, {checkpoint}")
    print_table((f"{kept} weights", "value"), rows)
    if remark := getattr(job.task, "remark", ""):
        print(remark)
    print(f"run      {run_dir}")
    print(f"report   {page}")
    what = "IMAGES" if job.task.of_timm else "FEATURES"
    if job.task.of_timm or hasattr(job.data, "features"):  # embedded bags lie in no files
        print(f"predict  softmaxfree predict {what} --checkpoint {shlex.quote(str(run_dir))}")
