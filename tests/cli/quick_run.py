"""A run of seconds for the tests of `softmaxfree train`."""

import csv
from pathlib import Path

QUICK = {
    "model.model_args.embed_dims": "[8,16,24,32]",
    "model.model_args.num_heads": "[1,1,1,1]",
    "model.warmup_epochs": "1",
    "data.img_size": "28",
    "data.batch_size": "20",
    "trainer.max_epochs": "2",
    "trainer.limit_train_batches": "4",
    "trainer.limit_val_batches": "1",
    "trainer.log_every_n_steps": "1",
    "trainer.accelerator": "cpu",
}


def overrides(**changes: object) -> list[str]:
    """Arguments of the run as the command line gives them; `a__b=1` stands for `--a.b=1`."""
    keys = {**QUICK, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [f"--{key}={value}" for key, value in keys.items()]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by its head."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
