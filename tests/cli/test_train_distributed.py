import csv
import os
import subprocess
import sys

import pytest

from softmaxfree.cli import train
from tests.cli.quick_run import overrides

# A model without BatchNorm, which would see each process's images alone (SyncBatchNorm needs a GPU); no random numbers
# but the data's order.
CHANGES = {
    "model__name": "test_vit",
    "model__model_args": '{"in_chans": 1, "img_size": 32, "embed_dim": 32}',
    "model__opt": "sgd",
    "model__lr": 0.05,
    "model__ema_decay": 0.9,
    "data__augment": "false",
    "data__img_size": 32,
    "trainer__limit_val_batches": 1.0,
    "trainer__max_epochs": 3,
}


def losses(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) for key in ("train/loss", "val/loss", "val/top1")]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path):
    arguments = [a for a in overrides(**CHANGES) if "embed_dims" not in a and "num_heads" not in a]
    alone = train.run("digits", [*arguments, "--data.batch_size=32"], out=str(tmp_path / "one"))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "softmaxfree",
    ]
    command += ["train", "digits", "--out", str(tmp_path / "two"), *arguments, "--data.batch_size=16"]
    command += ["--trainer.strategy=ddp", "--trainer.devices=2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "two" / "0") == pytest.approx(losses(alone), rel=1e-4)
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["0"]
    assert done.stdout.count("best epoch") == 1
