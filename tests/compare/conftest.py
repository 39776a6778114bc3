"""A stand-in for the command that trains: what a comparison makes of its runs needs no training."""

import json
from pathlib import Path

import pytest

from softmaxfree.compare import training


class FakeTrain:
    """`softmaxfree train` and `validate`, as far as a comparison sees them; `act` ends a training early."""

    def __init__(self):
        self.commands, self.act = [], None

    def __call__(self, command):
        self.commands.append(command)
        if command[3] == "validate":
            return "top-1 (%)  50.0\n"
        folder = Path(command[command.index("--out") + 1])
        run = Path(command[command.index("--resume") + 1]) if "--resume" in command else folder / "0"
        assert not run.exists() or "--resume" in command  # `train` would take the next number
        if self.act is not None:
            self.act(run)
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").touch()
        summary = {
            "monitor": "val/top1",
            "metrics": {"val/top1": 0.5},
            "labels": {"val/top1": ["top-1 (%)", 100, 2]},
            "best_epoch": 1,
            "seconds": 2.0,
            "model": {"parameters": 9},
            "machine": {"threads": 7},
            "confusion": None,
        }
        (run / "summary.json").write_text(json.dumps(summary))
        return ""


@pytest.fixture
def fake(monkeypatch):
    train = FakeTrain()
    monkeypatch.setattr(training, "_call", train)
    return train
