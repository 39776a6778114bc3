import json
import os
import pickle
import resource
import shutil
from types import SimpleNamespace

import pytest
import timm
import torch
from lightning.pytorch import Trainer

from softmaxfree.models.conversion import convert
from softmaxfree.models.downloads import cached
from softmaxfree.tasks import ClassificationTask, DetectionTask, SegmentationTask
from softmaxfree.tasks.checkpoints import AtomicCheckpointIO, KeptCheckpoint, load_weights
from softmaxfree.tasks.pretrained import save_pretrained
from softmaxfree.weights import read_notes
from tests.golden_files import released_weights

ARGUMENTS = {"in_chans": 1, "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)}
DATA_CONFIG = {
    "input_size": (1, 20, 20),
    "mean": (0.3,),
    "std": (0.6,),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


def task(num_classes=3, name="soft_nano", **arguments):
    return ClassificationTask(name, num_classes, {**ARGUMENTS, **arguments})


def model(num_classes=3, **arguments):
    return timm.create_model("soft_nano", num_classes=num_classes, **{**ARGUMENTS, **arguments})


def saved(module, path):
    """Writes the checkpoint of a Trainer."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
    )
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.save_checkpoint(path)


@pytest.fixture
def ckpt(tmp_path):
    """A checkpoint of a Trainer."""
    path = tmp_path / "best.ckpt"
    module = task()
    saved(module, path)
    return path, module.model


def assert_same(a, b):
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def test_weights_come_from_every_kind_of_file(ckpt, tmp_path):
    path, trained = ckpt
    save_pretrained(trained, tmp_path / "best", DATA_CONFIG, ("a", "b", "c"))
    torch.save(trained.state_dict(), tmp_path / "best.pth")
    for source in (path, tmp_path / "best", tmp_path / "best" / "model.safetensors", tmp_path / "best.pth"):
        loaded = model()
        load_weights(loaded, source)
        assert_same(loaded, trained)


def test_a_saved_folder_makes_the_same_model(ckpt, tmp_path):
    _, trained = ckpt
    save_pretrained(trained, tmp_path / "best", DATA_CONFIG, ("a", "b", "c"))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True)
    images = torch.randn(2, 1, 20, 20)
    assert torch.equal(loaded.eval()(images), trained.eval()(images))
    assert loaded.pretrained_cfg["label_names"] == ["a", "b", "c"]
    config = timm.data.resolve_model_data_config(loaded)
    assert {key: tuple(config[key]) if key in ("mean", "std") else config[key] for key in DATA_CONFIG} == DATA_CONFIG


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ClassificationTask, {}),
        (DetectionTask, {"head": "retinanet"}),
        (SegmentationTask, {"head": "semantic_fpn"}),
        (SegmentationTask, {"head": "upernet"}),
    ],
)
def test_a_checkpoint_needs_neither_cache_nor_network_and_keeps_the_depths_of_the_weights(
    kind, arguments, tmp_path, monkeypatch
):
    """The authors' file of SOFT-Small may be deeper than the model of that name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    weights, depths = released_weights("soft_norm_small"), (1, 3, 20, 4)
    convert(weights, "soft_norm_small", {"depths": depths}, cached("soft_norm_small"))
    module = kind("soft_norm_small", 3, model_args={"pretrained": True}, **arguments)
    first = module.model.state_dict()
    (conv,) = (value for name, value in first.items() if name.endswith("stages.2.blocks.19.attn.q.weight"))
    assert torch.equal(conv, weights["block3.19.att.mha.W_q.weight"])
    saved(module, tmp_path / "best.ckpt")

    shutil.rmtree(tmp_path / "cache")
    recorded = read_notes(tmp_path / "best.ckpt")["hyper_parameters"]
    assert recorded["model_args"]["depths"] == depths
    again = kind(**recorded)
    load_weights(again.model, tmp_path / "best.ckpt")
    torch.testing.assert_close(again.model.state_dict(), first, rtol=0, atol=0)


def test_transformers_can_load_a_saved_folder(ckpt, tmp_path):
    """Its TimmWrapper passes num_classes itself and fails on a second one among the arguments."""
    save_pretrained(ckpt[1], tmp_path, DATA_CONFIG, ())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == 3
    assert "num_classes" not in config["model_args"]


@pytest.mark.parametrize("name", ["soft_nano", "soft_tiny", "pvt_v2_b0"])
def test_a_saved_folder_names_no_weights_but_its_own(name, tmp_path):
    timms = timm.create_model(name, num_classes=3, in_chans=1)
    save_pretrained(timms, tmp_path, DATA_CONFIG, ())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == name
    assert config["pretrained_cfg"].keys() <= {
        "custom_load", "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std",
        "num_classes", "pool_size", "first_conv", "classifier",
    }  # fmt: skip
    assert "untrained" not in (tmp_path / "config.json").read_text()
    assert timms.pretrained_cfg.get("origin_url") == timm.get_pretrained_cfg(name).origin_url  # which is left as it was


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint"):
        load_weights(model(), tmp_path / "none.ckpt")


def test_another_number_of_classes(ckpt):
    with pytest.raises(ValueError, match=r"best.ckpt does not fit the model: .*num_classes=4 .* 3 classes"):
        load_weights(model(num_classes=4), ckpt[0])


def test_another_model(ckpt):
    with pytest.raises(ValueError, match=r"best.ckpt does not fit the model: .*another model"):
        load_weights(model(depths=(1, 1, 1, 1)), ckpt[0])


def test_resuming_with_another_model(ckpt):
    module = task(num_classes=4)
    with pytest.raises(ValueError, match=r"of soft_nano with 3 classes does not fit the model"):
        module.on_load_checkpoint(AtomicCheckpointIO().load_checkpoint(ckpt[0]))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("name", ["evil.ckpt", "evil.pth"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, name)
    with pytest.raises(ValueError, match=r"refused.*mkdir"):
        load_weights(model(), name)
    with pytest.raises(ValueError, match=r"no checkpoint that can be read safely"):
        AtomicCheckpointIO().load_checkpoint(name)
    assert not os.path.exists("evil")
    with open(name, "rb") as file, pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


def test_a_broken_checkpoint(tmp_path):
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match=r"no checkpoint that can be read"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "half.ckpt")


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr("secrets.token_hex", lambda size: "part")
    os.symlink("/dev/full", tmp_path / ".part.ckpt")  # what is written there finds no space
    with pytest.raises(OSError, match=r"no space left on the disk .* is the last good one"):
        io.save_checkpoint({"epoch": 2, "weights": torch.zeros(100_000)}, path)
    assert io.load_checkpoint(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_disk_that_fills_within_a_large_checkpoint(tmp_path, monkeypatch):
    """torch ends a file that it could not write with an error of its own."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "part")
    os.symlink("/dev/full", tmp_path / ".part.ckpt")
    weights = {str(i): torch.zeros(100_000) for i in range(20)}
    with pytest.raises(OSError, match=r"no space left on the disk") as caught:
        AtomicCheckpointIO().save_checkpoint(weights, tmp_path / "last.ckpt")
    assert caught.value.filename == str(tmp_path / "last.ckpt")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match=r"File too large: .*first.ckpt"):
            AtomicCheckpointIO().save_checkpoint(weights, tmp_path / "first.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("losses", "best"), [((3, 1, 2, 2), 1), ((3, 2, 1, 1), 3), ((None,) * 4, 3)])
def test_of_equal_scores_the_lower_loss_is_kept_and_else_the_later(tmp_path, losses, best):
    checkpoint = KeptCheckpoint(tmp_path, "best", monitor="val/score")
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=lambda kept: kept))
    kept = None
    for epoch, (loss, score) in enumerate(zip(losses, (0.5, 1.0, 1.0, 1.0), strict=True)):
        trainer.callback_metrics = {} if loss is None else {"val/loss": torch.tensor(float(loss))}
        if checkpoint.check_monitor_top_k(trainer, torch.tensor(score)):
            kept, checkpoint.best_model_score = epoch, torch.tensor(score)
            checkpoint.best_k_models = {"a": checkpoint.best_model_score}
            checkpoint.kth_best_model_path = "a"
    assert kept == best
