"""Only right results are timed; what was measured comes back from disk, in tables and in plots."""

import csv
import os
import subprocess
import sys
import time
from typing import cast

import pytest
import torch
from torch import nn

from softmaxfree.bench import registry, results
from softmaxfree.bench import run as bench_run
from softmaxfree.bench.registry import FORWARD, TRAIN
from softmaxfree.bench.trial import ALLOWED_ERROR, Trial
from softmaxfree_cli import main

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes a few runs of each, where numbers do not matter."""
    monkeypatch.setattr(bench_run, "_ALL_SECONDS", 1e-2)


@pytest.mark.parametrize("name", registry.SUITES["attention"].contestants)
def test_every_attention_is_right(name: str):
    suite = registry.SUITES["attention"]
    error, allowed = Trial(suite, suite.contestants[name], CPU, torch.float32, False).errors()
    assert error <= allowed
    assert error <= ALLOWED_ERROR
    Trial(suite, suite.contestants[name], CPU, torch.float32, False).prepare(FORWARD, 1, 784)()


@pytest.mark.parametrize("name", ["soft", "its four matrix products"])
def test_an_attention_is_measured(name: str):
    rows = list(bench_run.run("attention", CPU, only=[name], sizes=[784]))
    assert [row.what for row in rows] == [FORWARD] if "products" in name else [FORWARD, TRAIN]
    for row in rows:
        assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms
        assert row.peak_mib > 784 * 2 * 32 * 4 / 2**20  # the result at least
        assert row.error <= ALLOWED_ERROR


@pytest.mark.slow
def test_every_inverse_is_right_and_measured():
    rows = list(bench_run.run("inverse", CPU, sizes=[49, 100]))
    assert {row.name for row in rows} == set(registry.SUITES["inverse"].contestants)
    assert len(rows) == 3 * 2 * 2


@pytest.mark.parametrize("name", registry.SUITES["model"].contestants)
def test_every_model_is_right(name: str):
    suite = registry.SUITES["model"]
    bench = Trial(suite, suite.contestants[name], CPU, torch.float32, False)
    error, allowed = bench.errors()
    assert error <= ALLOWED_ERROR <= allowed


def _published() -> nn.Module:
    return registry.SUITES["attention"].contestants["published formulation"].build(784)


class _Wrong(nn.Module):
    def forward(self, q, v):
        return 1.01 * _published()(q, v)


def test_wrong_results_are_not_timed(monkeypatch):
    wrong = registry.Contestant(lambda n: _Wrong(), lambda module: _published())
    monkeypatch.setitem(registry.SUITES["attention"].contestants, "wrong", wrong)
    with pytest.raises(ValueError, match=r"wrong is wrong and not timed: error 1\.0e-02, allowed 1\.0e-03"):
        next(bench_run.run("attention", CPU, only=["wrong"], sizes=[784]))


class _Broken(nn.Module):
    def forward(self, q, v):
        raise RuntimeError("no kernel image\nand a long story")


def test_what_cannot_run_is_left_out(monkeypatch, caplog):
    broken = registry.Contestant(lambda n: _Broken())
    monkeypatch.setitem(registry.SUITES["attention"].contestants, "broken", broken)
    rows = bench_run.run("attention", CPU, only=["broken", "its four matrix products"], sizes=[784])
    assert [row.name for row in rows] == ["its four matrix products"]
    assert caplog.messages == ["broken in torch.float32 does not go on: no kernel image"]


_KILLED = """
import os, signal, torch
from softmaxfree.bench.worker import Worker
worker = Worker("attention", "soft", torch.device("cpu"), torch.float32, False)
print(worker._call(os.getpid), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_worker_ends_when_the_benchmark_is_killed():
    killed = subprocess.run([sys.executable, "-c", _KILLED], capture_output=True, text=True)
    process = int(killed.stdout)
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} goes on")


def test_halves_are_judged_by_the_reference_in_halves():
    suite = registry.SUITES["attention"]
    bench = Trial(suite, suite.contestants["soft, as released"], CPU, torch.bfloat16, False)
    error, allowed = bench.errors()
    assert ALLOWED_ERROR < error <= allowed


def test_expectation_follows_the_last_growth():
    assert bench_run._expected_seconds([(100, 1.0)], 200) == 0
    assert bench_run._expected_seconds([(100, 1.0), (200, 4.0)], 400) == pytest.approx(16 * 2**0.5)
    assert bench_run._expected_seconds([(100, 1.0), (200, 1.0)], 400) == pytest.approx(2**1.5)


def test_slow_contestants_take_fewer_turns_among_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_run, "_ALL_SECONDS", 3.0)
    order: list[str] = []

    class Clock:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.of_a_call = name, seconds

        def seconds(self, calls: int) -> float:
            order.append(self.name)
            return self.of_a_call

    clocks = {name: Clock(name, seconds) for name, seconds in {"fast": 1e-4, "middle": 0.3, "slow": 20.0}.items()}
    turns = {name: len(seconds) for name, seconds in bench_run._take_turns(cast(dict, clocks)).items()}
    assert turns == {"fast": 40, "middle": 10, "slow": 3}
    timed = order[3:]
    assert timed[-1] == "slow"
    assert 12 < timed.index("slow") < 20
    assert bench_run._take_turns({}) == {}


def _row(name: str, size: int, milliseconds: float, what: str = FORWARD, batch: int = 1) -> bench_run.Row:
    about = {"device": "cpu", "threads": 1, "torch": "2", "timm": "1", "softmaxfree": "0", "commit": "", "date": ""}
    return bench_run.Row(
        "attention", name, batch, size, "float32", False, what, milliseconds, milliseconds, milliseconds, 1, 1.0, 0.0,
        **about,
    )  # fmt: skip


def test_rows_survive_the_disk_and_the_latest_stays(tmp_path):
    path = tmp_path / "a" / "b.csv"
    first, second = _row("x", 784, 1.0), _row("y", 784, 2.5)
    results.write(path, [first, second, _row("x", 784, 3.0)])
    assert results.read(path) == [_row("x", 784, 3.0), second]
    assert results.read(tmp_path / "none.csv") == []


def test_pivot():
    rows = [_row("x", 784, 1.0), _row("x", 3136, 200.0), _row("y", 784, 2.5), _row("y", 784, 9.0, batch=8)]
    heads, lines = results.pivot(rows, FORWARD, "median_ms")
    assert heads == ["", "784, batch 8", "784", "3,136"]
    assert lines == [["x", "", "1", "200"], ["y", "9", "2.5", ""]]
    assert results.pivot(rows, FORWARD, "median_ms", "x")[1] == [["x", "", "1", "1"], ["y", "", "2.5", ""]]


def test_slope_of_a_square():
    rows = [_row("x", size, size**2 / 1e3) for size in (10, 100, 1000, 10_000)]
    assert results.slope(rows, "median_ms") == pytest.approx(2)
    assert results.slope(rows[:2], "median_ms") is None


@pytest.mark.slow
def test_command_measures_and_reports(tmp_path, capsys):
    arguments = ["bench", "attention", "--size", "784", "--out", str(tmp_path)]
    assert main([*arguments, "--only", "soft, as released", "published formulation"]) == 0
    assert "soft, as released, 1 x 784, forward+backward" in capsys.readouterr().out
    with (tmp_path / "results" / "attention-cpu.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    table = (tmp_path / "README.md").read_text()
    assert "| published formulation |" in table
    assert (tmp_path / "attention-cpu.png").stat().st_size > 10_000
    (tmp_path / "README.md").unlink()
    assert main(["bench", "attention", "--report", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == table


def test_command_reports_a_forward_pass_alone(tmp_path):
    own = ["--only", "soft", "--size", "784", "--forward-only"]
    assert main(["bench", "attention", *own, "--out", str(tmp_path)]) == 0
    assert "forward+backward" not in (tmp_path / "README.md").read_text()
    assert (tmp_path / "attention-cpu.png").stat().st_size > 10_000


def test_command_explains(capsys):
    assert main(["bench", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "needs a GPU that Triton compiles for, got cpu" in out
    assert "SOFTMAXFREE_GAUSSIAN" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ops"], "there is nothing called 'ops' to time; choose from attention, inverse, model"),
        (["attention", "--only", "x"], "only must be one of soft,"),
        (["attention", "--size", "5"], "size must be one of 784,"),
        (["--device", "cuda"], "--device cuda cannot be used here"),
        (["--device", "moon"], "--device moon cannot be used here"),
    ],
)
def test_command_refuses(arguments: list[str], message: str, tmp_path, capsys):
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
