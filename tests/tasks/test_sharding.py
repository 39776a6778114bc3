"""FSDP2 in two processes: a run that trains, is saved, resumed and loaded, and plain torch without the Trainer."""

import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from softmaxfree.data import DigitsDataModule, ScenesDetectionDataModule, ScenesSegmentationDataModule
from softmaxfree.layers import Block
from softmaxfree.tasks import ClassificationTask, DetectionTask, SegmentationTask
from softmaxfree.tasks.checkpoints import load_weights
from tests.processes import in_processes

NANO = {"embed_dims": [8, 16, 24, 32], "num_heads": [1, 1, 1, 1]}


def task():
    torch.manual_seed(0)
    return ClassificationTask("soft_nano", 10, {"in_chans": 1, **NANO}, warmup_epochs=0, sched="constant")


def trainer(folder, whole=False, epochs=1, tensor_parallel=1):
    warnings.simplefilter("ignore")  # of Lightning and torch about themselves
    return Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(
            data_parallel_size=2 // tensor_parallel,
            tensor_parallel_size=tensor_parallel,
            save_distributed_checkpoint=not whole,
            process_group_backend="gloo",
        ),
        max_epochs=epochs,
        limit_train_batches=3,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)],
    )


def logits(module):
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return module.eval()(images)


def train_and_resume(rank, folder, whole):
    data = DigitsDataModule(img_size=32, batch_size=8, augment=False)
    first = task()
    trainer(folder, whole).fit(first, datamodule=data)
    sharded = sum(isinstance(p, DTensor) for p in first.model.parameters())
    blocks = [isinstance(m, FSDPModule) for m in first.modules() if isinstance(m, Block)]
    assert sharded == len(list(first.model.parameters()))
    assert blocks
    assert all(blocks)
    last = folder + "/last.ckpt"
    loaded = task()
    trainer(folder, whole).validate(loaded, datamodule=data, ckpt_path=last, verbose=False, weights_only=True)
    alone = task()
    load_weights(alone.model, last)
    started = ClassificationTask("soft_nano", 10, {"in_chans": 1, **NANO}, init_from=last)
    assert f"parameters) of soft_nano from {last}" in started.loaded
    out = [logits(module) for module in (first, loaded, alone, started)]
    resumed, through = task(), task()
    trainer(folder, whole, epochs=2).fit(resumed, datamodule=data, ckpt_path=last, weights_only=True)
    trainer(folder + "/2", whole, epochs=2).fit(through, datamodule=data)
    return *out, logits(resumed), logits(through)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sharded_run_is_saved_loaded_and_resumed(tmp_path, whole):
    outs = in_processes(train_and_resume, 2, str(tmp_path), whole)
    first = outs[0][0]
    assert (tmp_path / "last.ckpt").is_file() == whole
    for trained, loaded, alone, started, resumed, through in outs:
        for other in (trained, loaded, alone, started):
            torch.testing.assert_close(other, first, rtol=0, atol=0)
        torch.testing.assert_close(resumed, through)
        assert (resumed - first).abs().max() > 1e-4


def dense(rank, folder, root):
    small = {**NANO, "normalize": True}
    losses = []
    data = ScenesSegmentationDataModule(root, train=8, val=2, img_size=64, batch_size=2, augment=False)
    head = {"hidden_size": 8, "auxiliary_channels": 8}
    module = SegmentationTask("soft_nano", 11, "upernet", small, head, warmup_epochs=0)
    trainer(folder).fit(module, datamodule=data)
    losses.append(module.trainer.callback_metrics["train/loss"])
    data = ScenesDetectionDataModule(root, train=8, val=2, img_size=64, batch_size=2, augment=False)
    detector = {"fpn_channels": 8, "anchor_sizes": (8, 16, 32, 64, 128), "min_size": 64, "max_size": 64}
    module = DetectionTask("soft_nano", 10, "retinanet", small, detector, warmup_epochs=0)
    trainer(folder + "/2").fit(module, datamodule=data)
    losses.append(module.trainer.callback_metrics["train/loss"])
    return losses


@pytest.mark.slow
def test_dense_tasks_are_sharded_too(tmp_path):
    root = str(tmp_path / "scenes")
    for kind in (ScenesSegmentationDataModule, ScenesDetectionDataModule):
        kind(root, train=8, val=2, img_size=64).prepare_data()
    for losses in in_processes(dense, 2, str(tmp_path), root):
        assert torch.stack(losses).isfinite().all()


def refused(rank, folder):
    with pytest.raises(ValueError, match=r"tensor_parallel_size must be 1 and data_parallel_size the number"):
        trainer(folder, tensor_parallel=2).fit(task(), datamodule=DigitsDataModule(img_size=32, batch_size=8))


@pytest.mark.slow
def test_tensors_are_not_split(tmp_path):
    in_processes(refused, 2, str(tmp_path))


def backbone():
    torch.manual_seed(0)
    return timm.create_model("soft_nano", num_classes=5, **NANO)


def sharded_backbone(rank, folder):
    mesh = init_device_mesh("cpu", (2,))

    def shard(model):
        for module in list(model.modules()):
            if isinstance(module, Block):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    model, optimizer = shard(backbone())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    mask[1, 40:] = False
    for _ in range(2):
        model(x, mask).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"weights": weights, "optimizer": state}, checkpoint_id=folder)
    twin, other = shard(backbone())
    weights, state = get_state_dict(twin, other)
    dcp.load({"weights": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(twin, other, model_state_dict=weights, optim_state_dict=state)
    with torch.no_grad():
        return model.eval()(x, mask), twin.eval()(x, mask), Path(folder, ".metadata").is_file()


@pytest.mark.slow
def test_torchs_own_sharding_of_a_backbone(tmp_path):
    for trained, loaded, written in in_processes(sharded_backbone, 2, str(tmp_path)):
        assert written
        torch.testing.assert_close(loaded, trained, rtol=0, atol=0)
