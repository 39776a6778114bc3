r"""Bags that need no download, by all encoders: MNIST-bags, a needle in long bags, an adjacent pair, Raff and Holt.

    python benchmarks/mil_tables.py
    python benchmarks/mil_tables.py --tables needle --lengths 1000 10000 100000 --encoders bag_encoder gated_attention

Each row is a training by one seed, measured on test bags with the weights of the last epoch: no epoch is chosen. Rows
that are there are not measured again. Writes benchmarks/mil-tables-cpu.csv.

mnist: protocol of Ilse et al. (2018): Adam 5e-4, weight decay 1e-4, 20 epochs, batch 1, 200 bags of about 10, pixels
through their LeNet, 1,000 test bags. needle, pair: 64 features of a digit by a network
that was trained to tell the 4,000 training digits. Raff and Holt: 16 numbers.
"""

import argparse
import csv
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from softmaxfree.atomic import write_csv
from softmaxfree.machine import describe
from softmaxfree.mil import list_bag_models
from softmaxfree.mil.data import EmbeddedBagsDataModule
from softmaxfree.mil.tasks import BagClassificationTask
from softmaxfree.tasks.callbacks import EpochSeed

OUTPUT = Path(__file__).parent / "mil-tables-cpu.csv"
RAFF_HOLT = ("single_concept", "multi_concept", "false_frequency")
TABLES = ("mnist", "needle", "pair", *RAFF_HOLT)
KEYS = ("table", "encoder", "instances", "seed", "train_bags", "epochs")
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
# training bags, test bags, epochs, rate, arguments of every encoder
SETTINGS: dict[str, tuple[int, int, int, float, dict[str, Any]]] = {
    "mnist": (200, 1000, 20, 5e-4, {"embed": "lenet"}),
    "needle": (200, 200, 20, 5e-4, {"embed_dim": 64}),
    "pair": (1000, 400, 20, 5e-4, {"embed_dim": 64}),
    **dict.fromkeys(RAFF_HOLT, (1000, 400, 8, 1e-3, {"embed_dim": 64})),
}


def main() -> None:
    """Measure, and write a row for each training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--encoders", nargs="+", choices=list_bag_models(), default=list_bag_models())
    parser.add_argument("--seeds", type=int, default=5, help="of mnist; the others take --few-seeds")
    parser.add_argument("--few-seeds", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000, 10_000], help="of the needle")
    parser.add_argument("--pair-length", type=int, default=100)
    parser.add_argument("--train-bags", type=int, help="in place of those of each table")
    parser.add_argument("--test-bags", type=int, help="in place of those of each table")
    parser.add_argument("--epochs", type=int, help="in place of those of each table")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = read(given.output)
    done = {tuple(str(row[key]) for key in KEYS) for row in rows}
    for table in given.tables:
        lengths = {"mnist": [10], "needle": given.lengths, "pair": [given.pair_length]}.get(table, [0])
        for length in lengths:
            for encoder in given.encoders:
                for seed in range(given.seeds if table == "mnist" else given.few_seeds):
                    bags, tested, epochs, *_ = SETTINGS[table]
                    bags, tested = given.train_bags or bags, given.test_bags or tested
                    epochs = given.epochs or epochs
                    key = (table, encoder, length or "", seed, bags, epochs)
                    if tuple(map(str, key)) in done:
                        continue
                    told = dict(zip(KEYS, key, strict=True))
                    rows.append({**told, **measure(table, encoder, length, seed, bags, tested, epochs)})
                    print({name: value for name, value in rows[-1].items() if name not in ("device", "torch", "timm")})
                    write_csv(given.output, rows)


def measure(table: str, encoder: str, length: int, seed: int, bags: int, tested: int, epochs: int) -> dict[str, Any]:
    """Train by one seed, and return the scores on the test bags."""
    *_, rate, arguments = SETTINGS[table]
    if (table, encoder) == ("mnist", "bag_encoder"):
        arguments = {**arguments, "embed_dim": 512, "depth": 0}  # as wide as the others
    of_digits = {} if table in RAFF_HOLT else {"length": length, "deviation": 2.0 if table == "mnist" else 0.0}
    encoding = "pixels" if table == "mnist" else "trained"
    counts: dict[str, int] = {"train_bags": bags, "val_bags": 2, "test_bags": tested}
    data = EmbeddedBagsDataModule(table, **of_digits, encoding=encoding, **counts, seed=seed)  # type: ignore[arg-type]
    data.setup("fit")
    seed_everything(seed, verbose=False)
    optimizer: dict[str, Any] = {"opt": "adam", "lr": rate, "weight_decay": 1e-4, "sched": "constant"}
    task = BagClassificationTask(encoder, 2, data.in_dim, arguments, **optimizer, warmup_epochs=0)
    own: Any = {"max_epochs": epochs, "limit_val_batches": 0, "callbacks": [EpochSeed(seed)], **QUIET}
    trainer = Trainer(accelerator="cpu", enable_model_summary=False, **own)
    begin = time.perf_counter()
    trainer.fit(task, datamodule=data)
    seconds = time.perf_counter() - begin
    loss = float(trainer.callback_metrics["train/loss"])
    scores = trainer.test(task, datamodule=data, verbose=False)[0]
    return {
        **{name.replace("/", "_"): round(value, 4) for name, value in scores.items()},
        "train_loss": round(loss, 4),
        "test_bags": tested,
        "rate": rate,
        "encoding": encoding if of_digits else "",
        "parameters": sum(weight.numel() for weight in task.model.parameters()),
        "train_s": round(seconds, 1),
        **describe(torch.device("cpu")),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows that are there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
