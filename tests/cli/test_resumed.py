"""A run that goes on: by its own configuration, with what was edited in its recipe since it began."""

import json
import shutil

import pytest
import torch
import yaml

from softmaxfree.cli import train
from softmaxfree.cli.recorded import _TAKEN_OUT, _differs, _edits, with_split
from softmaxfree.cli.settings import AUTO
from softmaxfree.data.splits import EVERY
from tests.cli.quick_run import overrides, read_csv


@pytest.mark.parametrize("empty", [{"model": {"args": None}}, {"model": {"args": {}}}, {"model": {}}, {}])
def test_a_section_that_is_left_empty_is_no_edit_by_itself(empty):
    full, key = {"model": {"args": {"rate": 0.1}}}, ("model", "args", "rate")
    assert _edits(empty, full) == {key: 0.1}
    assert _edits(full, empty) == {key: _TAKEN_OUT}
    assert _edits(empty, empty) == {}


@pytest.fixture
def run(tmp_path):
    """A run of a recipe of one's own, and the recipe."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: digits\nmodel: {lr: 0.002}\n")
    return train.run(str(recipe), overrides(), out=str(tmp_path / "runs")), recipe


def test_what_was_edited_in_the_recipe_is_used_and_told(run, capsys):
    run_dir, recipe = run
    recipe.write_text("base: digits\nmodel: {lr: 0.001}\ntrainer: {max_epochs: 3}\n")
    capsys.readouterr()
    assert train.run(str(recipe), resume="last", out=str(run_dir.parent)) == run_dir
    said = capsys.readouterr().out
    assert "edited since the run began, and used: model.lr = 0.001, trainer.max_epochs = 3" in said
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert (config["model"]["lr"], config["trainer"]["max_epochs"]) == (0.001, 3)
    assert config["data"]["batch_size"] == 20  # an option of the first call
    assert len(read_csv(run_dir / "metrics.csv")) == 3
    train.run(str(recipe), ["--trainer.max_epochs=4"], resume="last", out=str(run_dir.parent))
    said = capsys.readouterr().out
    assert "trainer.max_epochs was 3 and is 4 now: the learning rate follows it" in said
    assert "edited since" not in said
    more = ["--trainer.max_epochs=5", "--model.sched=constant"]
    train.run(str(recipe), more, resume="last", out=str(run_dir.parent))
    assert "learning rate follows" not in capsys.readouterr().out


def test_a_run_of_0_1_0_tells_what_it_does_not_use(run, capsys):
    run_dir, recipe = run
    (run_dir / "recipe.yaml").unlink()
    recipe.write_text("base: digits\nmodel: {lr: 0.001}\n")
    capsys.readouterr()
    train.run(str(recipe), ["--trainer.max_epochs=3"], resume="last", out=str(run_dir.parent))
    said = capsys.readouterr().out
    assert "its recipe says otherwise, which is not used: " in said
    assert "model.lr = 0.001" in said


def test_a_recipe_that_is_gone_is_told(run, capsys):
    run_dir, recipe = run
    recipe.unlink()
    train.run(str(recipe), ["--trainer.max_epochs=3"], resume="last", out=str(run_dir.parent))
    assert "mine.yaml is gone; the run goes on by" in capsys.readouterr().out


def test_a_recipe_of_another_task_is_refused(run):
    run_dir, _ = run
    with pytest.raises(ValueError, match=r"scenes_detection is a recipe of .*DetectionTask, the run in .* is of"):
        train.run("scenes_detection", resume=str(run_dir / "last.ckpt"))


def test_another_optimizer_is_refused_and_the_run_stays(run):
    run_dir, recipe = run
    config = (run_dir / "config.yaml").read_text()
    for opt in ("sgd", "muon"):
        with pytest.raises(ValueError, match=rf"model.opt is {opt}, but the run has the state of adamw"):
            train.run(str(recipe), [f"--model.opt={opt}", "--trainer.max_epochs=3"], resume=str(run_dir / "last.ckpt"))
    assert (run_dir / "config.yaml").read_text() == config


def test_the_folder_of_the_best_weights_is_prepared_as_they_are(run, capsys, caplog):
    """A run that goes on at another size measures anew, and so its best weights are of that size."""
    run_dir, recipe = run
    train.run(str(recipe), ["--trainer.max_epochs=3", "--data.img_size=32"], resume=str(run_dir / "last.ckpt"))
    assert "the best score starts anew" in caplog.text
    best = torch.load(run_dir / "best.ckpt", weights_only=True)
    assert best["epoch"] == 2
    assert best["data_config"]["input_size"] == (1, 32, 32)
    config = json.loads((run_dir / "best" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [1, 32, 32]


def test_edits_of_what_weights_are_tied_to_and_edits_under_options_are_told_truly(run, capsys):
    run_dir, recipe = run
    recipe.write_text(
        "base: digits\nmodel: {lr: 0.003, model_args: {solver: eigh}, label_smoothing: 0.1}\ntrainer: {max_epochs: 3}\n"
    )
    train.run(str(recipe), ["--model.lr=0.001", "--trainer.max_epochs=4"], resume="last", out=str(run_dir.parent))
    said = capsys.readouterr().out
    assert "edited since the run began, and used: model.label_smoothing = 0.1\n" in said
    assert "and not used, as the weights are tied to theirs: model.model_args.solver = eigh" in said
    assert len(read_csv(run_dir / "metrics.csv")) == 4
    recipe.write_text("base: digits\n")
    train.run(str(recipe), ["--trainer.max_epochs=5"], resume="last", out=str(run_dir.parent))
    assert "model.lr = 0.004" in capsys.readouterr().out


def test_what_a_recipe_leaves_to_be_decided_is_no_difference():
    for said, value in ((AUTO, 4), ({"fpn_channels": AUTO}, {"fpn_channels": 48}), ([1, 2], [1, 2])):
        assert not _differs(said, value)
    for said, value in ((3, 4), ({"fpn_channels": 64}, {"fpn_channels": 48}), ({}, {"fpn_channels": 48})):
        assert _differs(said, value)


def test_other_data_validates_as_a_whole_and_a_source_has_splits_of_its_own(tmp_path):
    (tmp_path / "config.yaml").write_text("base: classification\ndata: {root: here}\n")
    assert with_split({"data": {"root": "here"}}, tmp_path, ["--data.root=there"])["data"]["split"] == EVERY
    assert "split" not in with_split({"data": {"root": "here"}}, tmp_path, ["--data.root=here/"])["data"]
    assert "split" not in with_split({"data": {"source": "hfds/a"}}, tmp_path, ["--data.root=there"])["data"]


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_moved_run_keeps_its_best(run, tmp_path, how):
    run_dir, recipe = run
    best = torch.load(run_dir / "best.ckpt", weights_only=True)
    place = tmp_path / "elsewhere" / "0"
    if how == "moved":
        place.parent.mkdir()
        run_dir.rename(place)
    else:
        shutil.copytree(run_dir, place)
    mad = ["--trainer.max_epochs=4", "--model.lr=10", "--trainer.gradient_clip_val=null", "--model.ema_decay=0.01"]
    train.run(str(recipe), mad, resume=str(place / "last.ckpt"))
    after = torch.load(place / "best.ckpt", weights_only=True)
    rows = read_csv(place / "metrics.csv")
    scores = [float(row["val/top1"]) for row in rows]
    assert len(scores) == 4
    assert after["epoch"] == scores.index(max(scores))
    if max(scores[2:]) <= max(scores[:2]):
        assert after["epoch"] == best["epoch"]
    if how == "copied":
        assert (run_dir / "best.ckpt").is_file()
