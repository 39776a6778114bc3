import json
import shutil

import pytest

from softmaxfree.cli import train
from tests.cli.quick_run import overrides


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run of a classifier; it is only read."""
    return train.run("digits", overrides(), out=str(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of what a report is made from, to be changed."""
    copy = tmp_path / "digits" / "0"
    copy.mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv", "summary.json"):
        shutil.copy(finished / name, copy / name)
    shutil.copytree(finished / "mistakes", copy / "mistakes")
    return copy


@pytest.fixture
def change(run_dir):
    """Changes the summary of the copy by a function."""

    def apply(function):
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        function(summary)
        (run_dir / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        return run_dir

    return apply
