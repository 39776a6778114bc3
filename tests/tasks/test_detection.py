import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from softmaxfree.data import ScenesDetectionDataModule
from softmaxfree.errors import InputError
from softmaxfree.tasks import DetectionTask

SLIM = {"fpn_channels": 16, "anchor_sizes": (8, 16, 32, 64, 128), "min_size": 64, "max_size": 64}
FEW = {"box_batch_size_per_image": 16, "rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20}
NANO = {"embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1), "normalize": True}


class Squares(LightningDataModule):
    """Bright squares on grey, of two classes by colour; one image has none, one a crowd."""

    num_classes = 2
    class_names = ("red", "green")

    def __init__(self, num_images=6, batch_size=3):
        super().__init__()
        self.batch_size = batch_size
        self.samples = [_sample(i) for i in range(num_images)]

    def train_dataloader(self):
        return DataLoader(self.samples, self.batch_size, collate_fn=lambda samples: tuple(zip(*samples, strict=True)))

    val_dataloader = train_dataloader


def _sample(i):
    n, (x, y) = int(i != 1), (8 + 4 * (i % 3), 8 + 5 * (i % 4))
    image, masks = torch.full((3, 64, 64 - i), 0.4), torch.zeros(n, 64, 64 - i, dtype=torch.uint8)
    if n:
        image[i % 2, y : y + 24, x : x + 24] = 1
    masks[:, y : y + 24, x : x + 24] = 1
    return image, {
        "boxes": torch.tensor([[x, y, x + 24, y + 24]], dtype=torch.float32)[:n],
        "labels": torch.full((n,), i % 2),
        "masks": masks,
        "iscrowd": torch.zeros(n, dtype=torch.bool),
        "area": torch.full((n,), 576.0),
        "image_id": i,
    }


def task(head="retinanet", **arguments):
    few = FEW if head == "mask_rcnn" else {}
    defaults = {"model_args": NANO, "detector_args": {**SLIM, **few}, "warmup_epochs": 0, "lr": 2e-3}
    return DetectionTask(**{"name": "soft_nano", "num_classes": 2, "head": head, **defaults, **arguments})


def trainer(**arguments):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "num_sanity_val_steps": 0, **arguments},
    )


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_a_run_logs_losses_and_the_precisions_of_coco(head):
    torch.manual_seed(0)
    module, run = task(head, ema_decay=0.5, sched="multistep", decay_milestones=[1]), trainer(max_epochs=2)
    run.fit(module, datamodule=Squares())
    metrics = run.callback_metrics
    assert module.monitor in metrics
    assert module.summary.keys() <= metrics.keys()
    assert ("val/segm_map50" in module.summary) == (head == "mask_rcnn")
    assert metrics["train/loss"].isfinite()
    assert 0 <= metrics["val/map"] <= 1
    assert metrics["val/map_large"].isnan()  # there is no object of that size
    parts = {"retinanet": ("classification", "bbox_regression"), "mask_rcnn": ("classifier", "mask", "objectness")}
    assert {f"train/{part}" for part in parts[head]} <= metrics.keys()
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-4)


class Told(torch.nn.Module):
    """Detects what it is told, for the metrics."""

    def __init__(self, answers):
        super().__init__()
        self.answers = iter(answers)

    def forward(self, images):
        return [next(self.answers) for _ in images]


def _exact(sample, **changes):
    target = sample[1]
    answer = {key: target[key] for key in ("boxes", "labels")}
    answer |= {"scores": torch.full((len(target["labels"]),), 0.9), "masks": target["masks"].bool()}
    return {**answer, **changes}


def measure(module, data, answers):
    module.model = Told(answers)
    return trainer().validate(module, datamodule=data, verbose=False)[0]


def test_precisions_of_known_detections():
    data, module = Squares(), task("mask_rcnn")
    answers = [_exact(sample) for sample in data.samples]
    metrics = measure(module, data, answers)
    assert metrics["val/map"] == metrics["val/segm_map"] == metrics["val/map_small"] == 1

    # of class 0 the half of the boxes is shifted by a quarter of their side: an overlap of 0.6
    answers[0]["boxes"] = answers[0]["boxes"] + torch.tensor([6.0, 0, 6, 0])
    answers[2]["boxes"] = answers[2]["boxes"] + torch.tensor([6.0, 0, 6, 0])
    metrics = measure(module, data, answers)
    assert metrics["val/map50"] == 1
    assert metrics["val/map75"] < 1
    assert metrics["val/segm_map"] == 1
    torch.testing.assert_close(module.class_precision["segm"], torch.ones(2))
    assert module.class_precision["bbox"][0] < module.class_precision["bbox"][1] == 1


def test_what_lies_in_a_crowd_is_no_mistake():
    data = Squares(num_images=1)
    target = data.samples[0][1]
    crowd = torch.tensor([[30.0, 30.0, 64.0, 64.0]])
    target |= {"boxes": torch.cat([target["boxes"], crowd]), "labels": torch.zeros(2, dtype=torch.long)}
    target |= {"area": torch.tensor([576.0, 1156.0])}
    found = {
        "boxes": torch.cat([torch.tensor([[32.0, 32.0, 50.0, 50.0]]), target["boxes"][:1]]),
        "labels": torch.zeros(2, dtype=torch.long),
        "scores": torch.tensor([0.9, 0.8]),
    }
    target["iscrowd"] = torch.tensor([False, True])
    assert measure(task(), data, [found])["val/map50"] == 1
    target["iscrowd"] = torch.tensor([False, False])
    assert measure(task(), data, [found])["val/map50"] < 0.6


def test_a_class_without_objects_has_no_precision():
    data, module = Squares(num_images=1), task()
    measure(module, data, [_exact(data.samples[0])])
    precision = module.class_precision["bbox"]
    assert precision[0] == 1
    assert precision[1].isnan()


def test_it_reads_scenes(tmp_path):
    data = ScenesDetectionDataModule(
        str(tmp_path / "scenes"), train=2, val=1, img_size=64, batch_size=2, with_masks=True
    )
    module, run = task("mask_rcnn", num_classes=10), trainer()
    run.fit(module, datamodule=data)
    assert run.callback_metrics["train/mask"].isfinite()


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_precision(precision):
    run = trainer(precision=precision)
    run.fit(task("mask_rcnn"), datamodule=Squares(num_images=2))
    assert run.callback_metrics["train/loss"].isfinite()


def without_size():
    return {key: value for key, value in SLIM.items() if key not in ("min_size", "max_size")}


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_boxes_are_not_rounded(precision):
    with pytest.raises(InputError, match=f"trainer.precision must be 32-true, .* got {precision}, which rounds boxes"):
        trainer(max_epochs=1, precision=precision).fit(task(), datamodule=Squares())


def test_the_size_is_that_of_the_data():
    """Trained at one size and validated at another, good weights find nothing."""
    data, module = Squares(), task(detector_args=without_size())
    assert module.model.size == (800, 1333)
    data.data_config = {"size": (64, 96)}
    seen = []
    backbone = module.model.network.backbone.net
    backbone.register_forward_pre_hook(lambda net, args: seen.append(tuple(args[0].shape[-2:])))
    trainer().validate(module, datamodule=data, verbose=False)
    assert module.model.size == (64, 96)
    assert set(seen) == {(96, 64)}  # 64 x 62 and narrower, to a shorter side of 64


def test_one_size_is_given_in_one_place():
    data = Squares()
    data.data_config = {"size": (64, 96)}
    with pytest.raises(InputError, match=r"detector_args.max_size is 64, .* of the data is \(64, 96\); give the size"):
        trainer().fit(task(), datamodule=data)
    data.data_config = {"size": (64, 64)}  # which `detector_args` says too
    trainer(limit_train_batches=1, limit_val_batches=0).fit(task(), datamodule=data)
    data.data_config = {"size": (8, 64)}
    with pytest.raises(InputError, match=r"size must be a shorter side of 13 pixels or more"):
        trainer().fit(task(detector_args=without_size()), datamodule=data)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"head must be one of retinanet, mask_rcnn, got 'yolo'"):
        task("yolo")
    with pytest.raises(ValueError, match=r"model.num_classes is 3, but the data has 2 classes"):
        trainer().fit(task(num_classes=3), datamodule=Squares())
    with pytest.raises(ValueError, match=r"decay_milestones must be given for model.sched 'multistep'"):
        trainer().fit(task(sched="multistep"), datamodule=Squares())
