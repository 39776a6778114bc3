"""What makes the host wait for the device: never in a training step, where the CPU stands for the device."""

import traceback
from collections import Counter

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from softmaxfree.models.inputs import check_mask, mask_of_sizes
from softmaxfree.tasks import ClassificationTask, DetectionTask, SegmentationTask
from tests.tasks.test_detection import NANO, Squares, task, trainer

aten = torch.ops.aten
# each reads a value, or makes a shape of values
WAITS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.equal.default,
}


class Waits(TorchDispatchMode):
    """Counts what waits for the device, by the file of ours that asks, or "" for other packages alone."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indexed = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
        by_mask = indexed and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if func in WAITS or by_mask:
            self.found[
                next(frame.filename for frame in reversed(traceback.extract_stack()[:-1]) if _counts(frame))
            ] += 1
        return func(*args, **(kwargs or {}))


def _counts(frame):
    return "/torch/" not in frame.filename


def ours(waits):
    return {file: n for file, n in waits.found.items() if "/softmaxfree/" in file}


def test_the_mode_sees_what_waits():
    x = torch.arange(4.0)
    with Waits() as waits:
        _ = x.sum().item(), bool(x[0] > 1), x.nonzero(), x[x > 1], int(x.max())
    assert sum(waits.found.values()) >= 5


@pytest.mark.parametrize("normalize", [False, True])
def test_the_backbone_with_a_mask(normalize):
    model = timm.create_model("soft_nano", num_classes=5, **{**NANO, "normalize": normalize}).train()
    x, mask = torch.randn(2, 3, 64, 96), mask_of_sizes([(64, 70), (40, 96)], 64, 96)
    with Waits() as waits:
        model(x, mask).square().mean().backward()
    assert not waits.found


def test_a_wrong_mask_on_the_device_makes_nan_in_training():
    """The device is not waited for: the loss tells, and the run stops at it. The meta device has no values to read."""
    x, mask = torch.empty(2, 3, 64, 64, device="meta"), torch.ones(2, 64, 64, dtype=torch.bool, device="meta")
    images, kept = check_mask(mask, x, 13, training=True)
    assert images.shape == x.shape
    assert kept is mask
    with pytest.raises((NotImplementedError, RuntimeError)):
        check_mask(mask, x, 13)


def steps(module, data):
    """Runs the training step and its gradient under the mode, in a run of the Trainer."""
    waits = Waits()
    step = module.training_step

    def watched(batch, batch_idx):
        with waits:
            loss = step(batch, batch_idx)
            loss.backward(retain_graph=True)
        return loss

    module.training_step = watched
    trainer(limit_val_batches=0, log_every_n_steps=50).fit(module, datamodule=data)
    return waits


class Labelled(Squares):
    """The squares as images of a class, or with a label for each pixel; images have one size."""

    def __init__(self, dense):
        super().__init__()
        images = [(image[:, :, :56].clone(), target) for image, target in self.samples]
        if dense:
            self.samples = [(x[:, : 56 - i], (x[0] > 0.5).long()[: 56 - i]) for i, (x, _) in enumerate(images)]
        else:
            self.samples = [(x, i % 2) for i, (x, _) in enumerate(images)]
            self.train_dataloader = lambda: torch.utils.data.DataLoader(self.samples, self.batch_size)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        *(
            pytest.param(own, marks=pytest.mark.slow)
            for own in ({"mixup": 0.8, "cutmix": 1.0}, {"grad_checkpointing": True})
        ),
    ],
)
def test_classification(arguments):
    module = ClassificationTask("soft_nano", 2, NANO, warmup_epochs=0, **arguments)
    assert not steps(module, Labelled(dense=False)).found


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_segmentation(head):
    slim = {"hidden_size": 8, "auxiliary_channels": 8} if head == "upernet" else {"decoder_pyramid_channels": 16}
    module = SegmentationTask("soft_nano", 2, head, NANO, slim, class_weights=[0.5, 1.0], warmup_epochs=0)
    assert not steps(module, Labelled(dense=True)).found


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_detection(head):
    """torchvision's matching, sampling and losses do wait; nothing of ours does."""
    module: DetectionTask = task(head)
    waits = steps(module, Squares())
    assert waits.found
    assert not ours(waits)
