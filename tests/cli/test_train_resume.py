import json
import signal
import subprocess
import sys

import pytest
import torch

from softmaxfree.cli import train
from tests.cli.quick_run import overrides

# Everything that draws random numbers or keeps a state is on.
CHANGES = {
    "model__model_args__drop_path_rate": 0.2,
    "model__mixup": 0.5,
    "model__cutmix": 0.5,
    "model__ema_decay": 0.9,
    "trainer__max_epochs": 4,
    "trainer__limit_train_batches": 12,
}


def start_and_kill(out, arguments):
    """Start a run in its own process, which is killed in the middle of its third epoch."""
    command = [sys.executable, "-m", "softmaxfree", "train", "digits", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "epoch 2/4" in done.stdout
    assert "epoch 3/4" not in done.stdout


def epoch_of(path):
    return torch.load(path, weights_only=True)["epoch"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, workers):
    killer = {"class_path": "tests.cli.killer.Killer", "init_args": {"marker": str(tmp_path / "marker")}}
    arguments = overrides(**CHANGES, data__num_workers=workers, trainer__callbacks=json.dumps([killer]))
    start_and_kill(tmp_path / "killed", arguments)
    assert epoch_of(tmp_path / "killed" / "0" / "last.ckpt") == 1
    killed = train.run("digits", resume="last", out=str(tmp_path / "killed"))  # its config.yaml knows the rest
    whole = train.run("digits", arguments, out=str(tmp_path / "whole"))
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (killed, whole))
        for part in ("state_dict", "current_model_state"):
            assert a[part].keys() == b[part].keys()
            for key, weight in a[part].items():
                assert torch.equal(weight, b[part][key]), (name, part, key)
    a, b = ((folder / "metrics.csv").read_text().splitlines() for folder in (killed, whole))
    clock = a[0].split(",").index("seconds")
    rows = [[row.split(",") for row in lines] for lines in (a, b)]
    assert [[*r[:clock], *r[clock + 1 :]] for r in rows[0]] == [[*r[:clock], *r[clock + 1 :]] for r in rows[1]]
    assert len(a) == 5
