"""The moving average of the weights: its warm-up, what it copies, and what a run is too short for."""

import logging

import pytest
import torch
from lightning.pytorch import Callback
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from softmaxfree.tasks.averaging import Average, ema_decay_at
from tests.tasks.test_classification import Squares, fit, task


def test_the_warmup_is_timms():
    theirs = ModelEmaV3(nn.Linear(1, 1), 0.99, use_warmup=True, warmup_gamma=10, warmup_power=1)
    for count in (1, 7, 100, 1000, 10_000):
        assert ema_decay_at(count, 0.99, warmup=True) == pytest.approx(theirs.get_decay(count + 1))
    assert ema_decay_at(10_000, 0.99, warmup=True) == ema_decay_at(1, 0.99, warmup=False) == 0.99


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("record", torch.tensor([False, True]))

    def move(self, step):
        with torch.no_grad():
            self.weight.fill_(step)
        self.running.fill_(step)
        self.count.fill_(step)
        self.record.copy_(torch.tensor([step % 2 == 0, step % 2 == 1]))


def test_floats_are_averaged_and_what_counts_or_tells_is_copied():
    module = Buffers()
    average = AveragedModel(module, use_buffers=True, **Average(0.75, warmup=False)._kwargs)
    expected = 1.0
    for step in range(1, 6):
        module.move(step)
        average.update_parameters(module)
        expected = step if step == 1 else 0.75 * expected + 0.25 * step
        assert average.module.count == step
        assert average.module.record.tolist() == module.record.tolist()
    torch.testing.assert_close(average.module.weight.detach(), torch.full((2,), expected))
    torch.testing.assert_close(average.module.running, torch.full((2,), expected))


def trained(**arguments):
    """Accuracy on the squares after 6 epochs of 3 updates."""
    torch.manual_seed(0)
    return fit(task(lr=5e-3, **arguments), Squares(), max_epochs=6).callback_metrics["val/top1"].item()


def test_a_long_average_learns_in_a_short_run():
    raw, warm = trained(ema_decay=None), trained(ema_decay=0.99996)
    assert raw > 0.6
    assert warm == pytest.approx(raw, abs=0.2)
    assert trained(ema_decay=0.99996, ema_warmup=False) < 0.4


class Saved(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def averaged(module):
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def test_a_resumed_average_goes_on_as_if_it_had_not_been(tmp_path):
    path = tmp_path / "second.ckpt"
    arguments = {"ema_decay": 0.999, "lr": 5e-3}
    torch.manual_seed(0)
    whole = task(**arguments)
    trainer = fit(whole, Squares(), Saved(path), max_epochs=4)
    again = task(**arguments)
    trainer = type(trainer)(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=4,
        num_sanity_val_steps=0,
    )
    trainer.fit(again, datamodule=Squares(), ckpt_path=path, weights_only=True)
    for name, weight in averaged(whole).items():
        assert torch.equal(weight, averaged(again)[name]), name
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["averaging_state"] == {"n_averaged": torch.tensor(6)}
    assert "WeightAveraging" in checkpoint["callbacks"]  # as in checkpoints of 0.1.0


def told(caplog):
    """What is said, apart from how little such a run learns."""
    lines = [record.message for record in caplog.records if record.name.startswith("softmaxfree")]
    return [line for line in lines if "of the validation is given one class" not in line]


@pytest.mark.parametrize(
    ("arguments", "run", "message"),
    [
        ({"warmup_epochs": 10}, {}, "model.warmup_epochs 10 is not shorter than trainer.max_epochs 6"),
        ({"ema_decay": 0.99996}, {}, "the run has 18: with model.ema_warmup the decay reaches 0.64"),
        ({"ema_decay": 0.99996, "ema_warmup": False}, {}, "stays near the first weights; lower it, or set"),
        ({"ema_decay": 0.9}, {"accumulate_grad_batches": 3}, "over 10 updates, and the run has 6"),
        ({}, {"max_steps": 4}, "trainer.max_steps 4 ends the run in epoch 2 of 6"),
        ({}, {"max_time": "00:01:00:00"}, "trainer.max_time may end the run early"),
    ],
)
def test_a_run_that_is_too_short_says_so_once(arguments, run, message, caplog):
    with caplog.at_level(logging.WARNING, "softmaxfree"):
        fit(task(**arguments), Squares(), **{"max_epochs": 6, **run})
    (line,) = told(caplog)
    assert message in line
    assert "\n" not in line


def test_a_run_that_is_long_enough_says_nothing(caplog):
    fit(task(ema_decay=0.9), Squares(), max_epochs=6)
    assert not told(caplog)
