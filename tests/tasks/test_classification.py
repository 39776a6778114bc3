import math
from types import SimpleNamespace

import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from softmaxfree.errors import InputError
from softmaxfree.tasks import ClassificationTask

TINY = {
    "name": "soft_nano",
    "model_args": {"in_chans": 1, "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)},
}


class Squares(LightningDataModule):
    """White squares whose corner tells the class: learned in a few steps."""

    num_classes = 4

    def __init__(self, batch_size=16, num_images=48):
        super().__init__()
        self.batch_size = batch_size
        labels = torch.arange(num_images) % 4
        images = 0.1 * torch.randn(num_images, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        for image, label in zip(images, labels, strict=True):
            image[:, 8 * (label // 2) :, 8 * (label % 2) :][:, :8, :8] += 2
        self.dataset = TensorDataset(images, labels)

    def train_dataloader(self):
        return DataLoader(self.dataset, self.batch_size)

    def val_dataloader(self):
        return DataLoader(self.dataset, self.batch_size)


def task(**arguments):
    return ClassificationTask(**{**TINY, "num_classes": 4, "warmup_epochs": 1, **arguments})


def fit(module, data=None, *callbacks, **arguments):
    trainer = Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": False,
            **arguments,
        },
    )
    trainer.fit(module, datamodule=data or Squares())
    return trainer


class Steps(Callback):
    """Notes the learning rates of each step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


@pytest.mark.parametrize("accelerator", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_it_learns(accelerator):
    trainer = fit(task(lr=5e-3, label_smoothing=0.0), max_epochs=40, accelerator=accelerator, devices=1)
    assert trainer.callback_metrics["val/top1"] == 1
    assert trainer.callback_metrics["train/loss"] < 0.5


def test_confusions_are_those_of_the_last_validation():
    module = task()
    fit(module)
    assert module.confusion.compute().sum() == 48


def test_the_rate_warms_up_and_falls_within_epochs():
    steps = Steps()
    fit(task(lr=1e-2, warmup_lr=1e-3, min_lr=1e-4), None, steps, max_epochs=3)
    rates = [max(rates) for rates in steps.rates]  # 3 steps an epoch
    assert rates[:3] == pytest.approx([1e-3, 4e-3, 7e-3])
    cosine = [1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * t / 9)) / 2 for t in range(3, 9)]
    assert rates[3:] == pytest.approx(cosine)


def test_the_rate_falls_at_milestones_after_a_fraction_of_an_epoch():
    steps = Steps()
    arguments = {"sched": "multistep", "decay_milestones": [1, 2], "decay_rate": 0.1, "warmup_epochs": 1 / 3}
    fit(task(lr=1e-2, warmup_lr=1e-3, **arguments), None, steps, max_epochs=3)
    rates = [max(rates) for rates in steps.rates]  # 3 steps an epoch
    assert rates == pytest.approx([1e-3] + [1e-2] * 2 + [1e-3] * 3 + [1e-4] * 3)


def test_a_polynomial_decay():
    steps = Steps()
    fit(task(lr=1e-2, sched="poly", decay_rate=2.0, min_lr=0.0, warmup_epochs=0), None, steps, max_epochs=2)
    assert [max(rates) for rates in steps.rates] == pytest.approx([1e-2 * (1 - t / 6) ** 2 for t in range(6)])


def test_the_rate_follows_updates_not_batches():
    steps = Steps()
    fit(task(lr=1e-2, warmup_lr=1e-3), None, steps, max_epochs=2, accumulate_grad_batches=3)
    rates = [max(rates) for rates in steps.rates]
    assert rates[:3] == [1e-3] * 3
    assert rates[3:6] == [max(rates)] * 3


def test_layer_decay_scales_the_rates():
    steps = Steps()
    module = task(lr=1e-2, layer_decay=0.5)
    trainer = fit(module, None, steps, max_epochs=2)
    groups = trainer.optimizers[0].param_groups
    scales = {group["lr_scale"] for group in groups}
    assert max(scales) == 1
    assert len(scales) > 4
    peak = steps.rates[3]  # first step after the warm-up
    top = max(peak)
    assert peak == pytest.approx([top * group["lr_scale"] for group in groups])


def test_exempt_weights_do_not_decay():
    trainer = fit(module := task(weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in trainer.optimizers[0].param_groups for p in g["params"]}
    names = dict(module.model.named_parameters())
    exempt = module.model.no_weight_decay()
    assert exempt
    assert all(decay[id(names[name])] == 0 for name in exempt)
    assert decay[id(module.model.head.weight)] == 0.3
    assert decay[id(module.model.head.bias)] == 0


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("linear", 0.25), ("sqrt", 0.5)])
def test_the_rate_follows_the_batch(scaling, factor):
    steps = Steps()
    module = task(lr=1e-2, lr_scaling=scaling, base_batch=128, warmup_epochs=0)
    fit(module, None, steps, accumulate_grad_batches=2)  # 16 images x 2 steps of 128
    assert steps.rates[0] == pytest.approx([1e-2 * factor] * len(steps.rates[0]))


def test_without_a_batch_size_the_rate_cannot_be_scaled():
    data = Squares()
    data.batch_size, data.train_dataloader = None, lambda: DataLoader(data.dataset, 16)
    with pytest.raises(ValueError, match=r"model.lr_scaling linear needs a data module with a batch_size"):
        fit(task(lr_scaling="linear"), data)


def test_the_schedule_needs_epochs():
    with pytest.raises(ValueError, match=r"trainer.max_epochs must be a whole number, 1 or more.* got -1"):
        fit(task(), max_epochs=-1, max_steps=3)


def test_no_top_5_of_six_classes():
    few, many = task(num_classes=6), task(num_classes=7)
    assert "val/top5" not in few.summary
    assert list(few.accuracy.keys()) == ["val/top1"]
    assert "val/top5" in many.summary
    assert list(many.accuracy.keys()) == ["val/top1", "val/top5"]


@pytest.mark.parametrize("batch_size", [1, 7, 8])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing(batch_size, kind):
    module = task(**{kind: 1.0}, label_smoothing=0.1)
    images = torch.arange(batch_size).float().view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    labels = torch.arange(batch_size) % 4
    mixed, targets = module._mix(images.clone(), labels)
    assert mixed.shape == images.shape
    assert targets.shape == (batch_size, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(batch_size))
    assert (mixed != images).any() == (batch_size > 1)


def test_mixed_batches_are_trained_on():
    plain, mixed = (fit(task(mixup=alpha)).callback_metrics["train/loss"] for alpha in (0.0, 1.0))
    assert plain != mixed
    assert mixed.isfinite()


def test_label_smoothing():
    module, data = task(label_smoothing=0.3, lr=0.0, warmup_epochs=0, min_lr=0.0), Squares(num_images=16)
    loss = fit(module, data, max_epochs=1).callback_metrics["train/loss"]
    images, labels = data.dataset.tensors
    torch.testing.assert_close(loss, F.cross_entropy(module.train()(images), labels, label_smoothing=0.3))
    assert loss != F.cross_entropy(module(images), labels)


def test_the_average_is_what_is_validated():
    """With a decay of 1 the average stays at the weights after the first step, however long training goes."""
    arguments = {"ema_decay": 1.0, "ema_warmup": False, "lr": 5e-3, "warmup_epochs": 0}
    short, long = task(**arguments), task(**arguments)
    long.load_state_dict(short.state_dict())
    first = fit(short, Squares(num_images=16), max_epochs=1).callback_metrics
    trainer = fit(long, Squares(num_images=16), max_epochs=20)
    last = trainer.callback_metrics
    assert any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
    assert last["train/loss"] < 0.9 * first["train/loss"]  # the weights themselves did learn
    torch.testing.assert_close(last["val/loss"], first["val/loss"])


def test_without_a_decay_there_is_no_average():
    assert not any(isinstance(c, WeightAveraging) for c in fit(task(), max_epochs=1).callbacks)


def test_sharded_weights_cannot_be_averaged():
    module = task(ema_decay=0.9)
    module.trainer = SimpleNamespace(strategy=FSDPStrategy(), precision="32-true")
    with pytest.raises(ValueError, match=r"model.ema_decay must be null with sharded weights"):
        module.configure_callbacks()


@pytest.mark.parametrize(
    ("decay", "precision", "message"),
    [
        (1.5, "32-true", "from 0 to 1, got 1.5"),
        (0.9, "bf16-true", "null with trainer.precision bf16-true"),
        (0.9, "64-true", "null with trainer.precision 64-true"),
    ],
)
def test_an_average_that_cannot_be_is_refused(decay, precision, message):
    module = task(ema_decay=decay)
    module.trainer = SimpleNamespace(strategy=None, precision=precision)
    with pytest.raises(InputError, match=message):
        module.configure_callbacks()


def test_checkpointing_changes_no_gradient():
    images, labels = Squares().dataset.tensors
    gradients = []
    for flag in (False, True):
        torch.manual_seed(0)
        module = task(grad_checkpointing=flag)
        F.cross_entropy(module(images), labels).backward()
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_a_compiled_model_keeps_its_names_and_results():
    small = {"name": "test_vit", "model_args": {"in_chans": 1, "img_size": 16, "depth": 1}}
    plain, module = task(**small), task(**small, compile=True)
    module.load_state_dict(plain.state_dict())
    assert module.model._compiled_call_impl is not None
    images = Squares().dataset.tensors[0]
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_precision(precision):
    assert fit(task(), precision=precision).callback_metrics["train/loss"].isfinite()


def test_a_non_finite_loss_stops_the_run():
    data = Squares()
    data.dataset.tensors[0][40] = torch.nan  # in the third batch
    with pytest.raises(ValueError, match=r"loss is nan at step 2 \(epoch 0, batch 2\); there is no checkpoint"):
        fit(task(), data)


def test_losses_are_looked_at_where_they_are_logged():
    data = Squares(num_images=64)
    data.dataset.tensors[0][0] = torch.nan  # in the first batch
    module, done = task(), []
    count = LambdaCallback(on_train_batch_end=lambda trainer, *_: done.append(trainer.global_step))
    with pytest.raises(InputError, match=r"loss is nan at step 0 \(epoch 0, batch 0\)"):
        fit(module, data, count, log_every_n_steps=3)
    assert len(done) == 2


def test_no_broken_weights_replace_a_good_checkpoint(tmp_path):
    """A gradient may overflow where the loss did not, in the very step after which a checkpoint is due."""

    def overflow(trainer, module, *_):
        if trainer.global_step == 3:
            module.model.head.weight.data[0] = torch.inf

    keep = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    fault = LambdaCallback(on_train_batch_end=overflow)
    with pytest.raises(InputError, match=r"head.weight is not finite after step 3; the last good checkpoint is .*last"):
        fit(task(), Squares(num_images=64), fault, keep, enable_checkpointing=True)
    good = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert good["global_step"] == 2
    assert all(weight.isfinite().all() for weight in good["state_dict"].values())


def test_classes_of_model_and_data_must_agree():
    with pytest.raises(ValueError, match=r"model.num_classes is 5, but the data has 4"):
        fit(task(num_classes=5))


def test_an_unknown_model_or_argument():
    with pytest.raises(ValueError, match=r"no model 'soft_nanno'; did you mean soft_nano"):
        task(name="soft_nanno")
    with pytest.raises(ValueError, match=r"model_args: .*drop_pathh"):
        task(model_args={"drop_pathh": 0.1})


def test_images_below_the_minimum():
    data = Squares()
    data.dataset = TensorDataset(data.dataset.tensors[0][..., :8, :8], data.dataset.tensors[1])
    with pytest.raises(ValueError, match=r"at least 13x13 pixels, got .*8, 8"):
        fit(task(), data)
    data.data_config = {"input_size": (1, 8, 8)}
    with pytest.raises(ValueError, match=r"data.img_size is 8, but soft_nano needs images of 13 pixels or more"):
        fit(task(), data)


def test_images_of_other_channels_than_the_network_takes():
    data = Squares()
    channels = data.dataset.tensors[0].shape[1]
    data.data_config = {"input_size": (4 - channels, 32, 32)}
    message = rf"data.in_chans is {4 - channels}, but model.model_args.in_chans is {channels}"
    with pytest.raises(InputError, match=message):
        fit(task(), data)


def test_a_checkpoint_keeps_the_solver_that_its_weights_are_tied_to():
    task = ClassificationTask("soft_nano", 10, {"in_chans": 1})
    task.model.set_solver("cholesky")
    checkpoint = {"hyper_parameters": dict(task.hparams)}
    task.on_save_checkpoint(checkpoint)
    arguments = checkpoint["hyper_parameters"]["model_args"]
    assert timm.create_model("soft_nano", **arguments).solver == task.model.solver
    assert task.hparams["model_args"] == {"in_chans": 1}
