"""Released weights become files that name their model; anything else is refused in one line."""

import collections
import json
import os
import pickle

import pytest
import safetensors
import timm
import torch

from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER
from softmaxfree.ops import as_solver
from softmaxfree_cli import main
from tests.golden_files import release


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def load(path):
    """What `softmaxfree predict` does with a converted file."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    model = timm.create_model(metadata["architecture"], **json.loads(metadata["model_args"]), checkpoint_path=str(path))
    return model.eval(), metadata


def refused(capsys, *argv):
    assert main(["convert", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(("name", "file"), [("soft_tiny", "SOFT_Tiny.pth"), ("soft_norm_tiny", "SOFT_Tiny_norm.pth")])
def test_a_released_file_is_recognised_and_keeps_its_function(name, file, tmp_path, capsys):
    ema = release(tmp_path / file, name)
    assert main(["convert", str(tmp_path / file), str(tmp_path / "a.safetensors")]) == 0
    said = capsys.readouterr().out
    assert name in said
    assert "13.07 M" in said

    model, metadata = load(tmp_path / "a.safetensors")
    assert metadata["architecture"] == name
    torch.testing.assert_close(model.head.weight, ema["head.weight"], rtol=0, atol=0)
    newton = as_solver({"name": "newton", "iters": 20, "ridge": 0.01})
    assert model.solver == (RELEASED_NORMALIZED_SOLVER if model.mixers[0].normalize else newton)

    released = timm.create_model(name, checkpoint_path=str(tmp_path / file)).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), released(x))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file, "a.safetensors"])


@pytest.mark.slow
def test_the_released_depths_of_soft_small_are_taken_from_the_file(tmp_path):
    release(tmp_path / "SOFT_Small.pth", "soft_small")
    assert main(["convert", str(tmp_path / "SOFT_Small.pth"), str(tmp_path / "a.safetensors")]) == 0
    model, metadata = load(tmp_path / "a.safetensors")
    assert metadata["architecture"] == "soft_small"
    assert [len(stage.blocks) for stage in model.stages] == [1, 3, 20, 4]


def test_classes_and_channels_are_taken_from_the_file(tmp_path):
    change = {
        "head.weight": torch.rand(7, 512),
        "head.bias": torch.rand(7),
        "patch_embed1.proj.0.weight": torch.rand(32, 1, 3, 3),
    }
    release(tmp_path / "a.pth", "soft_tiny", **change)
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors"), "--model", "soft_tiny"]) == 0
    model, _ = load(tmp_path / "a.safetensors")
    assert model(torch.rand(1, 1, 64, 64)).shape == (1, 7)


def test_a_file_name_that_does_not_tell_the_family_needs_the_model(tmp_path, capsys):
    release(tmp_path / "model_best.pth", "soft_tiny")
    message = refused(capsys, tmp_path / "model_best.pth", tmp_path / "a.safetensors")
    assert "soft_tiny" in message
    assert "soft_norm_tiny" in message
    assert "give --model" in message
    assert not (tmp_path / "a.safetensors").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path, capsys):
    release(tmp_path / "SOFT_Tiny.pth", "soft_tiny")
    source, target = tmp_path / "SOFT_Tiny.pth", tmp_path / "a.safetensors"
    assert "as soft_medium: the checkpoint is of another model" in refused(
        capsys, source, target, "--model", "soft_medium"
    )
    assert "no model matches 'soft_tinny'; there are soft_tiny" in refused(
        capsys, source, target, "--model", "soft_tinny"
    )


def test_weights_of_no_soft_model_are_refused(tmp_path, capsys):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "soft_resnet.pth")
    assert "fits no SOFT model" in refused(capsys, tmp_path / "soft_resnet.pth", tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused(kind, tmp_path, capsys):
    content = {"state_dict": {"a": torch.zeros(2)}, "x": Code(f"touch {tmp_path / 'ran'}")}
    source = tmp_path / "SOFT_Tiny.pth"
    if kind == "pickle":
        source.write_bytes(pickle.dumps({"x": content["x"]}))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=kind == "torch")
    message = refused(capsys, source, tmp_path / "a.safetensors")
    assert f"{source} is refused" in message
    assert ("posix.system" in message) == (kind != "pickle")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello" * 100,
        pickle.dumps([1, 2]),
        pickle.dumps({"a": 1}),
        pickle.dumps(collections.OrderedDict()),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_a_file_without_weights_is_refused(content, suffix, tmp_path, capsys):
    source = tmp_path / f"soft{suffix}"
    source.write_bytes(content)
    assert str(source) in refused(capsys, source, tmp_path / "a.safetensors")


def test_a_damaged_file_is_refused(tmp_path, capsys):
    release(tmp_path / "a.pth", "soft_tiny")
    (tmp_path / "SOFT_Tiny.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:10_000])
    assert "cannot be read as weights" in refused(capsys, tmp_path / "SOFT_Tiny.pth", tmp_path / "a.safetensors")


def test_wrong_paths_are_refused(tmp_path, capsys):
    assert "a.pth: there is no such checkpoint" in refused(capsys, tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "TARGET must end in .safetensors" in refused(capsys, tmp_path / "a.pth", tmp_path / "a.pt")
