"""From a run to the hub and back, by every one-line way; the hub is a fake on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.report.reading import read_run
from softmaxfree.share import model_card
from softmaxfree_cli import main
from tests.cli.written_run import NAMES, write_run
from tests.share.fake_hub import FakeHub

pytest.importorskip("lightning")
ROOT = Path(__file__).parents[2]
CONFIG = {"input_size": (3, 64, 64)}
TOKEN = "hf_fakeFAKEfakeFAKEfakeFAKEfakeFAKE00"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def hub():
    server = FakeHub()
    yield server
    server.close()


def test_a_folder_for_timm_and_transformers_with_a_card(run, tmp_path, capsys, monkeypatch):
    assert main(["push", str(run), "anna/cracks", "--out", str(tmp_path / "a"), "--license", "mit"]) == 0
    assert "nothing was sent" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (tmp_path / "a/README.md").read_text(encoding="utf-8")
    head = card.split("---")[1]
    assert 'license: "mit"' in head
    assert "library_name: timm" in head
    for told in (
        "| data | cracks |",
        "| 75.0",
        "licence of the data | not stated",
        "ok, crack\\|, weiß",
        "64x64",
        "softmaxfree train",
    ):
        assert told in card
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 70)).save("image.jpg")
    exec(card.split("```python")[1].split("```")[0].replace("hf-hub:anna/cracks", f"local-dir:{tmp_path / 'a'}"), {})
    assert capsys.readouterr().out.strip() in ("ok", "crack|", "weiß")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "a").eval()
    x = torch.rand(1, 3, 64, 64)
    own = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True).eval()
    torch.testing.assert_close(model(x).logits, own(x))
    assert model.config.id2label[1] == "crack|"


def test_the_card_of_a_resumed_run_has_all_its_commands(run):
    summary = {**read_run(run), "command": "softmaxfree train a"}
    parts = [{"command": "softmaxfree train a --resume last.ckpt", "resumed_from": 3}]
    card = model_card({**summary, "resumed": parts}, "anna/cracks", CONFIG, NAMES, 1000)
    assert "```bash\nsoftmaxfree train a\nsoftmaxfree train a --resume last.ckpt\n```" in card
    assert "```bash\nsoftmaxfree train a\n```" in model_card(summary, "anna/cracks", CONFIG, NAMES, 1000)


def test_the_card_has_the_scores_of_classes(run):
    scores = {"precision": [0.5, None, 1.0], "recall": [0.25, 0.0, 1.0]}
    told = model_card({**read_run(run), "class_scores": scores}, "anna/cracks", CONFIG, NAMES, 1000).splitlines()
    first = told.index("| class | precision (%) | recall (%) |")
    assert told[first + 2 : first + 5] == ["| ok | 50.0 | 25.0 |", "| crack\\| |  | 0.0 |", "| weiß | 100.0 | 100.0 |"]


def test_there_and_back_by_a_hub(run, hub, tmp_path):
    assert main(["push", str(run), "anna/cracks", "--out", str(tmp_path / "a")]) == 0
    config = (tmp_path / "a/config.json").read_bytes()
    hub.files["anna/half"] = {"config.json": config}
    other = {**json.loads(config), "architecture": "no_such_net"}
    hub.files["anna/other"] = {"config.json": json.dumps(other).encode(), "model.safetensors": b""}
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
        "TORCH_HOME": str(tmp_path / "torch"),
    }
    command = [sys.executable, str(ROOT / "tests/share/use_hub.py"), str(run), str(tmp_path / "a")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(hub.files["anna/cracks"]) >= {"README.md", "config.json", "model.safetensors"}
    told = [line for line in done.stdout.splitlines() if line.startswith("told:")]
    assert len(told) == 3
    assert "anna/nothing" in told[0]
    assert "anna/half" in told[1]
    assert "no_such_net" in told[2]
    assert f"Bearer {TOKEN}" in {token for _, _, token in hub.seen}  # it was used, and is nowhere else
    assert TOKEN not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes()
    refused, gone = (line for line in done.stderr.splitlines() if line.startswith("softmaxfree push:"))
    assert "refuses to write anna/refused (403): run `hf auth login`" in refused
    assert f"{hub.url} cannot be reached: " in gone


def test_nothing_of_the_user_is_replaced(run, tmp_path, capsys):
    (tmp_path / "README.md").write_text("# My project\n", encoding="utf-8")
    argv = ["push", str(run), "anna/cracks", "--out", str(tmp_path)]
    assert main(argv) == 2
    assert "README.md is there and is no earlier output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert main([*argv[:-1], str(tmp_path / "new")]) == 0
    assert main([*argv[:-1], str(tmp_path / "new"), "--license", "no"]) == 0
    head = (tmp_path / "new/README.md").read_text(encoding="utf-8").split("---")[1]
    assert yaml.safe_load(head)["license"] == "no"
    assert torch.hub.load(str(ROOT), "from_hub", str(tmp_path / "new"), source="local").num_classes == 3


def test_a_card_has_the_scores_of_its_weights(tmp_path, capsys):
    run = write_run(tmp_path)
    (run / "best.ckpt").rename(run / "last.ckpt")
    assert main(["push", str(run), "anna/cracks", "--out", str(tmp_path / "a")]) == 0
    assert "| 50.00 |" in (tmp_path / "a/README.md").read_text(encoding="utf-8")  # of the last epoch, not of the best
    summary = read_run(run) | {"kept": "best"}
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    capsys.readouterr()
    assert main(["push", str(run), "anna/cracks", "--out", str(tmp_path / "b")]) == 2
    assert "are of best.ckpt, but the weights there are" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_one_clear_error(run, tmp_path, capsys):
    assert main(["push", str(run), "anna"]) == 2
    assert "REPOSITORY must be user/name, got 'anna'" in capsys.readouterr().err
    assert main(["push", str(run), "anna/--x"]) == 2
    assert "REPOSITORY: Repo id must" in capsys.readouterr().err
    assert main(["push", str(tmp_path / "none"), "anna/x"]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_run_s_own_folder_is_not_written_into(run, tmp_path, capsys):
    assert main(["push", str(run), "anna/cracks", "--out", str(run)]) == 2
    assert "--out: " in (said := capsys.readouterr().err)
    assert "is the folder of a run" in said
