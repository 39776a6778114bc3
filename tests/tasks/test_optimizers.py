"""Optimizers by name, of timm and of pytorch-optimizer, and the loss with StableMax."""

import json

import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.optim import muon
from torch import nn
from torch.nn import functional as F

from softmaxfree.cli.checkpoint import load_classifier
from softmaxfree.cli.predict_classes import predict_classes
from softmaxfree.errors import InputError
from softmaxfree.ops import stablemax_logits
from softmaxfree.tasks import optimization
from softmaxfree.tasks.optimization import check_optimizer, create_optimizer, optimizer_arguments
from tests.tasks.test_classification import fit, task

ORTHOGONALIZE = muon.zeropower_via_newtonschulz


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 3))


@pytest.mark.parametrize("opt", ["adamp", "diffgrad", "muon", "came", "lookahead_diffgrad", "orthograd_adamw"])
def test_a_run_with_it(opt):
    module = task(opt=opt)
    before = module.model.head.weight.detach().clone()
    trainer = fit(module)
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert not module.model.head.weight.equal(before)


@pytest.mark.parametrize("opt", ["adahessian", "sophiah"])
def test_a_run_with_second_derivatives(opt):
    trainer = fit(task(opt=opt), max_epochs=1, gradient_clip_val=1.0)
    assert trainer.callback_metrics["train/loss"].isfinite()
    state = next(iter(trainer.optimizers[0].state.values()))
    assert any("hess" in key for key in state)
    with pytest.raises(InputError, match=r"trainer.accumulate_grad_batches must be 1 with model.opt \w+, got 2"):
        fit(task(opt=opt), accumulate_grad_batches=2)


def test_weights_are_grouped_as_for_timm():
    ours, timms = (create_optimizer(network(), name, 0.1, {"weight_decay": 0.2}) for name in ("diffgrad", "adamw"))
    groups = [
        [(group["weight_decay"], [weight.shape for weight in group["params"]]) for group in optimizer.param_groups]
        for optimizer in (ours, timms)
    ]
    assert groups[0] == groups[1]
    assert {decay for decay, _ in groups[0]} == {0.0, 0.2}


def test_gradients_are_made_orthogonal_to_the_weights():
    weight = nn.Parameter(torch.randn(4, 3))
    module = nn.Module()
    module.weight = weight
    optimizer = create_optimizer(module, "orthograd_sgd", 1.0, {"nesterov": False, "momentum": 0.0})
    before, gradient = weight.detach().clone(), torch.randn(4, 3)
    weight.grad = gradient.clone()
    optimizer.step()
    step = before - weight.detach()
    assert (step * before).sum().abs() < 1e-5
    across = gradient - (gradient * before).sum() / before.square().sum() * before
    torch.testing.assert_close(step, across * gradient.norm() / across.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("difgrad", r"model.opt: there is no 'difgrad'; did you mean diffgrad"),
        ("lomo", r"model.opt: there is no 'lomo'"),
        ("ortograd_adamw", r"model.opt: there is no 'ortograd_'; did you mean orthograd_\?"),
    ],
)
def test_an_unknown_one_is_refused_with_the_nearest_names(name, message):
    with pytest.raises(InputError, match=message) as refused:
        check_optimizer(name)
    assert "\n" not in str(refused.value)


def test_arguments_that_it_does_not_take_are_refused():
    with pytest.raises(InputError, match=r"model.opt 'ranger21' with {}: .*num_iterations"):
        create_optimizer(network(), "ranger21", 0.1, {})
    for name, given in (
        ("sgd", {"betas": [0.9, 0.99]}),
        ("adamw", {"momentum": 0.5}),
        ("lookahead_lion", {"eps": 1e-3}),
    ):
        with pytest.raises(InputError, match=rf"model.opt '{name}' has no {next(iter(given))}: leave it out"):
            create_optimizer(network(), name, 0.1, given)
    create_optimizer(network(), "lookahead_sgd", 0.1, {"momentum": 0.5})
    with pytest.raises(InputError, match=r"model.opt_args has weight_decay, 0.9: give model.weight_decay in its place"):
        optimizer_arguments({"weight_decay": 0.05, "layer_decay": None, "opt_args": {"weight_decay": 0.9}})


def test_a_schedule_that_the_run_is_too_short_for_is_refused():
    with pytest.raises(
        InputError, match=r"model.sched wsd does not fit trainer.max_epochs 1 and model.warmup_epochs 1: "
    ):
        fit(task(sched="wsd"), max_epochs=1)


def test_the_loss_with_stablemax():
    module = task(loss="stablemax", label_smoothing=0.1).eval()
    module.log_loss = lambda *_: None
    module.model.head.weight.data.mul_(50)  # the two losses are near each other for small logits
    images, labels = torch.randn(4, 1, 16, 16), torch.arange(4)
    expected = F.cross_entropy(stablemax_logits(module(images)), labels, label_smoothing=0.1)
    torch.testing.assert_close(module.training_step((images, labels), 0), expected)
    assert not torch.allclose(expected, F.cross_entropy(module(images), labels, label_smoothing=0.1))
    trainer = fit(task(loss="stablemax", mixup=0.5, lr=5e-3))
    assert trainer.callback_metrics["val/loss"].isfinite()
    with pytest.raises(InputError, match=r"model\.loss must be cross_entropy or stablemax"):
        task(loss="stable")


def test_predictions_have_the_probabilities_of_the_loss(tmp_path):
    image = tmp_path / "image.png"
    Image.new("L", (16, 16), 200).save(image)
    for loss in ("stablemax", "cross_entropy"):
        module = task(loss=loss)
        module.model.head.weight.data.mul_(50)
        trainer = fit(module, max_epochs=1, limit_train_batches=1)
        trainer.save_checkpoint(tmp_path / f"{loss}.ckpt")
        classifier = load_classifier(str(tmp_path / f"{loss}.ckpt"), None)
        predict_classes([image], classifier, tmp_path / "out.json", topk=4, format="json")
        best = json.loads((tmp_path / "out.json").read_text())[0]["predictions"]
        told = torch.tensor([row["probability"] for row in sorted(best, key=lambda row: row["index"])])
        x = create_transform(**classifier.data_config)(Image.open(image))
        with torch.no_grad():
            logits = classifier.model(x[None])[0]
        expected = stablemax_logits(logits) if loss == "stablemax" else logits
        torch.testing.assert_close(told, expected.softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("opt", ["muon", "adamuon", "lookahead_muon"])
@pytest.mark.parametrize("fast", [True, False])
def test_muon_computes_in_float32_where_bfloat16_is_slower(opt, fast, monkeypatch):
    used = []

    def orthogonalize(*args, dtype=torch.bfloat16, **more):
        used.append((min(args[0].shape), dtype))
        return ORTHOGONALIZE(*args, dtype=dtype, **more)

    monkeypatch.setattr(optimization, "_ORTHOGONALIZE", orthogonalize)
    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", orthogonalize)
    monkeypatch.setattr(optimization, "has_fast_bfloat16", lambda device: fast)
    model = nn.Sequential(nn.Linear(12, 128), nn.Linear(128, 130), nn.Linear(130, 129))
    optimizer = create_optimizer(model, opt, 0.1, {})
    for _ in range(2):
        model(torch.randn(5, 12)).square().sum().backward()
        optimizer.step()
    large = torch.bfloat16 if fast else torch.float32
    assert set(used) == {(12, torch.float32), (128, torch.float32), (129, large)}
    assert muon.zeropower_via_newtonschulz is orthogonalize  # others find it as it was


def test_a_step_of_muon_in_float32_is_that_of_bfloat16(monkeypatch):
    updates = []
    for fast in (True, False):
        monkeypatch.setattr(optimization, "has_fast_bfloat16", lambda device, fast=fast: fast)
        torch.manual_seed(0)
        model = nn.Linear(160, 144, bias=False)
        before = model.weight.detach().clone()
        model(torch.randn(2048, 160)).square().sum().backward()  # of full rank: else bfloat16 magnifies its own error
        create_optimizer(model, "muon", 0.1, {"weight_decay": 0.0}).step()
        updates.append(model.weight.detach() - before)
    low, full = updates
    assert not torch.equal(low, full)
    assert (low - full).norm() < 0.02 * full.norm()
