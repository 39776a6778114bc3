"""A frozen backbone, and one with a rate of its own."""

import copy

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.models.parts import parts_of
from softmaxfree.tasks import DetectionTask
from tests.tasks import test_detection, test_segmentation
from tests.tasks.test_averaging import Saved
from tests.tasks.test_classification import TINY, Squares, Steps, fit, task

pytestmark = pytest.mark.filterwarnings("ignore:model.freeze is backbone")


@pytest.mark.parametrize("kind", ["classifier", "detector", "segmenter"])
def test_a_frozen_backbone_does_not_move(kind):
    """Neither its weights, nor the statistics of its batch norms, nor is it regularised."""
    arguments = {"freeze": "backbone", "warmup_epochs": 0, "lr": 1e-2, "ema_decay": 0.5}
    if kind == "classifier":
        module = task(model_args={**TINY["model_args"], "drop_path_rate": 0.5}, **arguments)
        before = copy.deepcopy(module.model.state_dict())
        trainer = fit(module, max_epochs=2)
    elif kind == "detector":
        module, trainer = test_detection.task(**arguments), test_detection.trainer()
        before = copy.deepcopy(module.model.state_dict())
        trainer.fit(module, datamodule=test_detection.Squares())
    else:
        module, trainer = test_segmentation.task(**arguments), test_segmentation.trainer()
        before = copy.deepcopy(module.model.state_dict())
        trainer.fit(module, datamodule=test_segmentation.Halves())
    parts = parts_of(module.model)
    moved = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert not any(parts.in_backbone(name) for name in moved)
    optimized = sum(p.numel() for group in trainer.optimizers[0].param_groups for p in group["params"])
    assert optimized == module.num_trained < sum(p.numel() for p in module.model.parameters())
    assert "the backbone is frozen" in module.loaded


def test_modes():
    module = task(freeze="backbone").train()
    assert module.model.training
    assert module.model.head.training
    assert module.model.head_drop.training
    assert not any(m.training for m in module.model.stages.modules())
    assert not any(m.training for m in module.eval().modules())
    assert all(m.training for m in task().train().modules())


class First(Saved):
    """Saves after the first epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_a_frozen_run_goes_on(tmp_path):
    path, arguments = tmp_path / "first.ckpt", {"freeze": "backbone", "lr": 1e-2, "ema_decay": 0.5}
    through, again = task(**arguments), task(**arguments)
    fit(through, Squares(), First(path), max_epochs=2)
    trainer = test_segmentation.trainer(max_epochs=2)
    trainer.fit(again, datamodule=Squares(), ckpt_path=path, weights_only=True)
    assert trainer.global_step == 6
    torch.testing.assert_close(again.model.state_dict(), through.model.state_dict())


def test_the_backbone_has_a_rate_of_its_own():
    steps = Steps()
    module = task(lr=1e-2, backbone_lr_scale=0.1, layer_decay=0.5)
    trainer = fit(module, None, steps, max_epochs=2)
    parts, names = parts_of(module.model), {id(p): name for name, p in module.model.named_parameters()}
    plain = task(lr=1e-2, layer_decay=0.5)
    decayed = fit(plain, max_epochs=1).optimizers[0].param_groups
    theirs = {id(p): name for name, p in plain.model.named_parameters()}
    by_decay = {theirs[id(p)]: group["lr_scale"] for group in decayed for p in group["params"]}
    seen = {}
    for i, group in enumerate(trainer.optimizers[0].param_groups):
        for p in group["params"]:
            seen[names[id(p)]] = steps.rates[3][i] / max(steps.rates[3])  # the first step after the warm-up
    assert seen.keys() == by_decay.keys()
    for name, rate in seen.items():
        assert rate == pytest.approx(by_decay[name] * (0.1 if parts.in_backbone(name) else 1)), name
    assert seen["head.weight"] == 1


@pytest.mark.parametrize("opt", ["muon", "lookahead_adamw", "sgd"])
def test_other_optimizers_take_it(opt):
    groups = fit(task(opt=opt, backbone_lr_scale=0.1), max_epochs=1).optimizers[0].param_groups
    assert {group["lr_scale"] for group in groups} == {0.1, 1.0}
    assert max(group["lr"] for group in groups) == pytest.approx(10 * min(group["lr"] for group in groups))


def test_wrong_arguments():
    with pytest.raises(InputError, match=r"model.backbone_lr_scale must be above 0 and finite, got 0"):
        task(backbone_lr_scale=0)
    with pytest.raises(InputError, match=r"model.freeze must be none or backbone, got 'all'"):
        DetectionTask("soft_nano", 2, freeze="all")


def test_a_frozen_backbone_of_random_weights_is_warned_of_and_noted(tmp_path):
    module = task(freeze="backbone")
    with pytest.warns(UserWarning, match=r"^model.freeze is backbone, but the backbone has random weights"):
        trainer = fit(module, max_epochs=1)
    assert len(module.start_remarks) == 1
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = task(freeze="backbone", init_from=str(tmp_path / "a.ckpt"))
    assert (again.start_remarks, task().start_remarks) == ([], [])
