"""Loggers and callbacks that a recipe names by their class."""

import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from softmaxfree.cli import train
from softmaxfree.cli.recipe import create_trainer, load_job
from softmaxfree.errors import InputError
from softmaxfree_cli import main
from tests.cli.quick_run import overrides

LOGGER = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
STOP = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/top1", "mode": "max"}}


def test_in_a_recipe_and_on_the_command_line(tmp_path):
    rates = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    recipe = tmp_path / "own.yaml"
    recipe.write_text(yaml.safe_dump({"base": "digits", "trainer": {"logger": [LOGGER], "callbacks": [STOP, rates]}}))
    options = [f"--trainer.logger={yaml.safe_dump(LOGGER, default_flow_style=True).strip()}"]
    options += [f"--trainer.callbacks={yaml.safe_dump([STOP], default_flow_style=True, width=200).strip()}"]
    both = ((str(recipe), [], (EarlyStopping, LearningRateMonitor)), ("digits", options, (EarlyStopping,)))
    for name, more, kinds in both:
        trainer = create_trainer(load_job(name, [*overrides(), *more]).trainer)
        assert isinstance(trainer.logger, CSVLogger)
        assert trainer.logger.save_dir == "logs"
        for kind in kinds:
            assert any(type(callback) is kind for callback in trainer.callbacks)
        assert trainer.early_stopping_callback.monitor == "val/top1"


def test_a_metric_that_is_not_there_is_told_in_one_line(tmp_path, capsys):
    stop = {**STOP, "init_args": {"monitor": "val/accuracy"}}
    given = overrides(trainer__max_epochs=1, trainer__callbacks=yaml.safe_dump([stop], default_flow_style=True).strip())
    assert main(["train", "digits", *given, "--out", str(tmp_path)]) == 2
    assert (
        "softmaxfree train: Early stopping conditioned on metric `val/accuracy` which is not" in capsys.readouterr().err
    )


def test_a_run_with_a_callback_that_saves_is_validated(tmp_path, capsys):
    save = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": str(tmp_path / "own")},
    }
    given = overrides(trainer__max_epochs=1, trainer__callbacks=yaml.safe_dump([save], default_flow_style=True).strip())
    assert main(["train", "digits", *given, "--out", str(tmp_path)]) == 0
    assert list((tmp_path / "own").glob("*.ckpt"))
    saved = sorted((tmp_path / "own").iterdir())
    assert main(["validate", str(tmp_path / "0")]) == 0
    assert sorted((tmp_path / "own").iterdir()) == saved


def test_the_folder_of_lightning_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"trainer.default_root_dir, .*, would have no effect: --out is the folder"):
        train.run("digits", overrides(trainer__default_root_dir=str(tmp_path / "a")), out=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
