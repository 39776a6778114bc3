"""Loggers and callbacks that a recipe names by their class."""

import yaml
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from softmaxfree.cli.recipe import create_trainer, load_job
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
