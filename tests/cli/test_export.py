"""`softmaxfree export`: what it prints, what it leaves, and what it refuses in one line."""

import json

import pytest
import torch

from softmaxfree_cli import main
from tests.cli.written_run import NAMES, write_run

pytest.importorskip("lightning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.mark.slow
def test_a_run_as_a_program(run, tmp_path, capsys):
    out = tmp_path / "cracks.pt2"
    assert main(["export", str(run), str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("checked")]) == 6
    assert lines[-1] == f"written  {out}: x to logits; allowed were 0.0001"
    extra = {"metadata.json": ""}
    program = torch.export.load(out, extra_files=extra).module()
    told = json.loads(extra["metadata.json"])
    assert json.loads(told["class_names"]) == NAMES
    assert json.loads(told["input_size"]) == [3, 64, 64]
    assert program(torch.rand(5, 3, 40, 61)).shape == (5, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.tflite"], "out must end in .onnx, .pt2, .aoti.pt2 or _aoti (a folder), got"),
        (["a.onnx", "--int8"], "--int8 and --calibration DIR belong together: give both"),
        (["a.onnx", "--opset", "3"], "opset must be 18 to"),
        (["a.onnx", "--image", "no.jpg"], "no.jpg"),
    ],
)
def test_one_clear_error(arguments, told, run, tmp_path, capsys):
    out = tmp_path / arguments[0]
    assert main(["export", str(run), str(out), *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_at_once(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("softmaxfree.export.writing.write", lambda *_: pytest.fail("minutes of work came first"))
    (tmp_path / "x_aoti").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out, told in (("x_aoti", "x_aoti is a file, and a folder of that name"), ("file/a.pt2", "file")):
        assert main(["export", str(run), str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "x_aoti"]


def test_no_such_checkpoint(tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "a.onnx")]) == 2
    assert "there is no such checkpoint" in capsys.readouterr().err
