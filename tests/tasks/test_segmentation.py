import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from softmaxfree.data.images import collate_lists
from softmaxfree.tasks import SegmentationTask

TINY = {
    "name": "soft_nano",
    "num_classes": 3,
    "head": "semantic_fpn",
    "model_args": {"embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)},
    "head_args": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32, "decoder_dropout": 0.0},
}


class Halves(LightningDataModule):
    """A dark half and a bright one; the border is not labelled."""

    num_classes = 3

    def __init__(self, num_images=8, batch_size=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.samples, self.batch_size = [], batch_size
        for _ in range(num_images):
            column = int(torch.randint(16, 48, (), generator=generator))
            label = (torch.arange(64) >= column).long().expand(64, 64).clone()
            image = 0.2 * torch.rand(3, 64, 64, generator=generator) + 0.7 * label
            label[:, column - 2 : column + 2] = 255
            self.samples.append((image, label))

    def train_dataloader(self):
        return DataLoader(self.samples, self.batch_size, collate_fn=collate_lists)

    val_dataloader = train_dataloader


class Echo(nn.Module):
    """Stands for a network that is sure of the class that the image's first channel names."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes, self.sizes = num_classes, []

    def forward(self, images):
        self.sizes += [tuple(image.shape[1:]) for image in images]
        return [20 * F.one_hot(image[0].long(), self.num_classes).permute(2, 0, 1).float() for image in images]


def task(**arguments):
    return SegmentationTask(**{**TINY, "warmup_epochs": 1, **arguments})


def trainer(**arguments):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "num_sanity_val_steps": 0, **arguments},
    )


def validated(module, batches):
    runner = trainer()
    runner.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    return {key: value.item() for key, value in runner.callback_metrics.items()}


def test_it_learns():
    module, runner = task(lr=1e-2), trainer(max_epochs=12, check_val_every_n_epoch=12)
    runner.fit(module, datamodule=Halves())
    metrics = runner.callback_metrics
    assert metrics["val/miou"] > 0.95  # of the two classes that there are
    assert metrics["val/pixel_accuracy"] > 0.97
    assert metrics["train/loss"] < 0.5
    assert set(module.summary) <= set(metrics)
    assert module.monitor in metrics
    torch.testing.assert_close(module.class_iou[:2].mean(), metrics["val/miou"])
    assert module.class_iou[2].isnan()


def test_the_score_is_that_of_all_pixels_together():
    """Not the mean over images, in which a rare class weighs as much as its image."""
    module = task()
    module.model = Echo(3)
    predicted = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 1, 1, 2, 2, 0, 0]])
    labels = torch.tensor([[0, 1, 1, 255]]), torch.tensor([[1, 1, 1, 1, 2, 1, 255, 0]])
    batches = [([p.expand(3, 1, -1).float()], [label]) for p, label in zip(predicted, labels, strict=True)]
    metrics = validated(module, batches)
    iou = [2 / 3, 5 / 7, 1 / 2]
    assert module.class_iou.tolist() == pytest.approx(iou)
    assert metrics["val/miou"] == pytest.approx(sum(iou) / 3)
    assert metrics["val/pixel_accuracy"] == pytest.approx(8 / 10)
    assert metrics["val/loss"] == pytest.approx(2 / 10 * 20, rel=1e-4)  # two pixels are surely wrong


def test_logits_are_brought_to_the_size_of_the_label():
    module = task()
    module.model = Echo(3)
    image, label = torch.zeros(3, 4, 4), torch.zeros(10, 9, dtype=torch.long)
    image[:, :, 2:] = 1
    label[:, 5:] = 1
    label[:, 4] = 255
    assert validated(module, [([image], [label])])["val/pixel_accuracy"] == 1


def test_large_images_are_seen_through_windows():
    module = task(evaluation="slide", window=(64, 48), stride=(40, 40))
    module.model = Echo(3)
    image = torch.randint(3, (1, 100, 90)).expand(3, -1, -1).float()
    assert validated(module, [([image], [image[0].long()])])["val/miou"] == 1
    assert set(module.model.sizes) == {(64, 48)}


def test_images_are_seen_at_scales():
    module = task(scales=[1.0, 1.5])
    module.model = Echo(3)
    image = torch.zeros(3, 64, 48)
    image[:, :, 24:] = 1
    metrics = validated(module, [([image], [image[0].long()])])
    assert metrics["val/miou"] == pytest.approx(1, abs=0.05)
    assert metrics["val/loss"] >= 0
    assert set(module.model.sizes) == {(64, 48), (96, 72)}


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_the_loss_is_the_weighted_mean_over_all_labelled_pixels(weight):
    head_args = {"hidden_size": 8, "auxiliary_channels": 8}
    class_weights = [0.5, 1.0, 3.0]
    module = task(head="upernet", head_args=head_args, auxiliary_weight=weight, class_weights=class_weights)
    images = [torch.rand(3, 64, 64), torch.rand(3, 40, 50)]
    labels = [torch.randint(3, image.shape[1:]) for image in images]
    labels[0][:30] = 255
    module.log_loss = lambda *_: None
    loss = module.training_step((images, labels), 0)
    outputs = [torch.cat([own.flatten(1) for own in logits], 1).T for logits in module.model.forward_train(images)]
    target = torch.cat([label.flatten() for label in labels])
    weights = torch.tensor(class_weights)
    main, auxiliary = (F.cross_entropy(out, target, weights, ignore_index=255) for out in outputs)
    torch.testing.assert_close(loss, main + weight * auxiliary)


def test_each_class_needs_a_weight():
    with pytest.raises(ValueError, match=r"class_weights must have 3 entries, one for each class, got \[1.0, 2.0\]"):
        task(class_weights=[1.0, 2.0])


def test_a_batch_without_labels_has_no_loss():
    module = task()
    module.log_loss = lambda *_: None
    assert module.training_step(([torch.rand(3, 64, 64)], [torch.full((64, 64), 255)]), 0) == 0


def test_a_batch_of_which_no_image_could_be_read():
    module = task()
    module.model = Echo(3)
    image, label = torch.ones(3, 4, 4), torch.ones(4, 4, dtype=torch.long)
    assert validated(module, [([], []), ([image], [label])])["val/miou"] == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(precision):
    runner = trainer(precision=precision)
    runner.fit(task(), datamodule=Halves(4))
    assert runner.callback_metrics["train/loss"].isfinite()
    assert runner.callback_metrics["val/loss"].isfinite()


def test_checkpointing_changes_no_gradient():
    gradients = []
    for flag in (False, True):
        torch.manual_seed(0)
        module = task(grad_checkpointing=flag)
        module.model.forward_train(torch.ones(2, 3, 64, 64))[0][0].sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("label", [3, -1, 150])
@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_labels_out_of_range(step, label):
    labels = [torch.zeros(64, 64, dtype=torch.long), torch.full((64, 64), label)]
    with pytest.raises(ValueError, match=rf"labels must be from 0 to 2 or 255 \(ignored\), got {label}"):
        getattr(task(), step)(([torch.rand(3, 64, 64)] * 2, labels), 0)


def test_a_non_finite_loss_stops_the_run():
    data = Halves()
    data.samples[5][0].fill_(torch.nan)
    with pytest.raises(ValueError, match=r"loss is nan at step 1 \(epoch 0, batch 1\)"):
        trainer().fit(task(), datamodule=data)


def test_classes_of_model_and_data_must_agree():
    with pytest.raises(ValueError, match=r"model.num_classes is 4, but the data has 3"):
        trainer().fit(task(num_classes=4), datamodule=Halves())
