"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest
import torch

from softmaxfree.cli.models import _rows, find_models
from softmaxfree_cli.commands import parse

FOLDER = Path(__file__).parents[1]
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_python_runs_and_has_the_shapes_it_says():
    pytest.importorskip("segmentation_models_pytorch")
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["logits"].shape == (2, 10)
    assert [tuple(m.shape[1:]) for m in names["maps"]] == [(64, 56, 56), (128, 28, 28), (320, 14, 14), (512, 7, 7)]
    assert names["masks"].shape == (2, 150, 224, 224)
    assert names["out"].shape == (2, 8, 4096, 32)
    assert torch.isfinite(names["out"]).all()


def test_commands_are_understood():
    lines = re.findall(r"^softmaxfree (.*)$", "\n".join(blocks("bash")), re.M)
    assert len(lines) >= 7
    for line in lines:
        name, *tokens = line.split()
        parse(name, tokens)


def test_recipes_of_ones_own_are_recipes(tmp_path):
    recipe = pytest.importorskip("softmaxfree.cli.recipe")
    assert len(blocks("yaml")) == 3
    for block in blocks("yaml"):
        (tmp_path / "own.yaml").write_text(block, encoding="utf-8")
        job = recipe.load_job(str(tmp_path / "own.yaml"), [])
        assert job.task.hparams["lr_scaling"] == "none"


def test_make_targets_exist():
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.M)
    makefile = (FOLDER / "Makefile").read_text()
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_the_table_is_what_the_command_prints():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if "| soft_" in line]
    assert {row[0] for row in rows} == set(find_models())
    for name in ("soft_nano", "soft_norm_tiny"):
        assert [tuple(row) for row in rows if row[0] == name] == _rows(name, None)


def test_links_lead_somewhere():
    local = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert len(local) >= 8
    assert [link for link in local if not (FOLDER / link).exists()] == []
