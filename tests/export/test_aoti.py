"""A package of AOTInductor, and the C++ of the page, which loads it without this package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.export import export

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
CONFIG = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.filterwarnings("ignore"),  # of torch's compiler
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    own = dict(mixer="elu_linear", class_token=False, embed_dim=16, num_heads=2, depth=1, num_classes=2)
    return timm.create_model("soft_vit_tiny", **own).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("packages") / "cells_aoti"
    done = export(model, out, CONFIG, ["crack", "none"])
    assert max(each.value for each in done.differences) <= 1e-4
    return out


def test_a_folder_with_its_metadata(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.json", "model.pt2"]
    assert list(folder.parent.iterdir()) == [folder]
    told = json.loads((folder / "metadata.json").read_text())
    assert json.loads(told["class_names"]) == ["crack", "none"]
    assert json.loads(told["mean"]) == [0.5, 0.4, 0.3]


_LAYOUTS = """
import sys, torch
model = torch._inductor.aoti_load_package(sys.argv[1])
x = torch.linspace(-1, 1, 3 * 70 * 90).view(1, 70, 90, 3).permute(0, 3, 1, 2)
print(model(x.contiguous()).tolist())
try:
    model(x)
except RuntimeError as error:
    print(error)
"""


def test_a_permuted_image_is_told_where_inputs_are_checked(model, folder):
    env = {**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1"}
    command = [sys.executable, "-c", _LAYOUTS, str(folder / "model.pt2")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    logits, error = done.stdout.splitlines()[:2]
    x = torch.linspace(-1, 1, 3 * 70 * 90).view(1, 70, 90, 3).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert json.loads(logits)[0] == pytest.approx(model(x)[0].tolist(), rel=1e-3, abs=1e-4)
    assert "stride" in error


def test_the_page_runs_it_from_cpp(model, folder, tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    (tmp_path / "main.cpp").write_text(re.search(r"```cpp\n(.+?)```", text, re.S)[1])
    command = re.search(r"^T=.+?(?=^```)", text, re.S | re.M)[0].replace("./main photos.aoti.pt2", "")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", command], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["./main", str(folder / "model.pt2")], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'classes ["crack", "none"]' in done.stdout
    numbers = [float(line) for line in done.stdout.splitlines()[1:]]
    with torch.no_grad():
        expected = model(torch.full((1, 3, 70, 90), 0.5))[0].tolist()
    assert numbers == pytest.approx(expected, rel=1e-3, abs=1e-4)
