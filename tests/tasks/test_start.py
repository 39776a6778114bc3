"""Starting from other weights: what is loaded, left out and made anew, and what is refused."""

import logging
import shutil

import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from softmaxfree.errors import InputError
from softmaxfree.models import creation
from softmaxfree.models.linearized import linearized_of
from softmaxfree.models.parts import parts_of
from softmaxfree.tasks import ClassificationTask, DetectionTask, SegmentationTask
from softmaxfree.tasks.pretrained import save_pretrained
from softmaxfree.weights import read_notes
from tests.golden_files import release, released_weights
from tests.tasks.test_checkpoints import DATA_CONFIG, Evil, saved
from tests.tasks.test_classification import TINY, Squares, fit, task

SMALL = {"embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)}
SLIM = {"fpn_channels": 8, "min_size": 64, "max_size": 64}


class Named(Squares):
    class_names = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The folder of a run, with an average and other weights than at its start."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    module, keep = task(lr=5e-3), ModelCheckpoint(folder, "best", enable_version_counter=False)
    fit(module, Named(), keep, max_epochs=1, enable_checkpointing=True)
    save_pretrained(module.model, folder / "best", {**DATA_CONFIG, "input_size": (1, 16, 16)}, Named.class_names)
    torch.save(module.model.state_dict(), folder / "weights.pth")
    return folder


def weights_of(source):
    return torch.load(source / "weights.pth", weights_only=True)


def assert_started(module, weights, but=()):
    own = module.model.state_dict()
    assert own.keys() == weights.keys()
    for name, value in own.items():
        if name != "record":
            assert torch.equal(value, weights[name]) == (name not in but), name


@pytest.mark.parametrize("source", ["", "best.ckpt", "best", "best/model.safetensors", "weights.pth", "local-dir:"])
def test_it_starts_from_every_kind(run_dir, source):
    given = f"local-dir:{run_dir / 'best'}" if source == "local-dir:" else str(run_dir / source)
    module = task(init_from=given)
    assert_started(module, weights_of(run_dir))
    assert module.loaded.startswith("136 tensors (0.02 M parameters)")
    assert ("of soft_nano" in module.loaded) == (source != "weights.pth")


def test_a_head_of_other_classes_is_made_anew(run_dir):
    torch.manual_seed(0)
    scratch = task(num_classes=5)
    torch.manual_seed(0)
    module = task(num_classes=5, init_from=str(run_dir))
    assert module.loaded == (
        f"134 tensors (0.02 M parameters) of soft_nano from {run_dir / 'best.ckpt'}; left out: head; "
        "made anew: head for 5 classes (4 there)"
    )
    assert torch.equal(module.model.head.weight, scratch.model.head.weight)
    own, theirs = module.model.state_dict(), weights_of(run_dir)
    assert all(torch.equal(own[n], theirs[n]) for n in own if not n.startswith(("head", "record")))


@pytest.mark.parametrize("names", [("a", "b", "c", "d"), ("b", "a", "c", "d"), None])
def test_a_head_of_as_many_classes_is_kept_if_they_are_the_same(run_dir, names):
    data, module = Squares(), task(init_from=str(run_dir), lr=0.0, warmup_lr=0.0, min_lr=0.0, ema_decay=0.5)
    if names:
        data.class_names = names
    fit(module, data, limit_train_batches=1, max_epochs=1, limit_val_batches=0)
    kept = torch.equal(module.model.head.weight, weights_of(run_dir)["head.weight"])
    assert kept == (names != ("b", "a", "c", "d"))
    anew = "left out: head; made anew: head for 4 classes (4 there), as the classes there are others (a, b, c, d)"
    assert module.loaded.endswith(anew) == (not kept)
    assert module.loaded.startswith("136 tensors" if kept else "134 tensors")


def test_a_checkpoint_needs_nothing_that_the_run_started_from(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "first")
    module = task(init_from=str(tmp_path / "first"))
    saved(module, tmp_path / "second.ckpt")
    shutil.rmtree(tmp_path / "first")
    notes = read_notes(tmp_path / "second.ckpt")
    assert "init_from" not in notes["hyper_parameters"]
    again = ClassificationTask(**notes["hyper_parameters"])
    assert again.loaded == ""
    again.on_load_checkpoint(notes)
    assert again.loaded == module.loaded


def test_another_architecture(run_dir, tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=8, depth=1, num_heads=1, img_size=32, num_classes=0)
    save_pretrained(linearized_of(vit), tmp_path / "student", {"input_size": (3, 32, 32)}, ())
    small = {**SMALL, "in_chans": 1}
    for arguments, source, message in (
        (
            {"name": "soft_tiny", "model_args": {"in_chans": 1}},
            run_dir,
            "is of soft_nano, and this model is soft_tiny: ",
        ),
        ({"model_args": {**small, "depths": (1, 1, 1, 1)}}, run_dir, "other model.model_args: it has a st"),
        ({"model_args": {**small, "depths": (1, 1, 3, 1)}}, run_dir, "other model.model_args: it has no st"),
        ({"model_args": {**small, "embed_dims": (16, 8, 8, 8)}}, run_dir, r"there and \(.*\) here"),
        ({"model_args": {**small, "normalize": True}}, run_dir, "trained with normalize=False"),
        (
            {},
            tmp_path / "resnet.pth",
            "of another model, and this model is soft_nano: no weight of it is there, but",
        ),
        (
            {},
            tmp_path / "student",
            "of linearized, and this model is soft_nano: no weight of it is there.*; the model of that folder is "
            f"--model.name local-dir:{tmp_path / 'student'} --init-from pretrained",
        ),
    ):
        with pytest.raises(InputError, match=f"model.init_from: .*{message}"):
            task(**arguments, init_from=str(source))


def test_what_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pth")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.ckpt").touch()
    torch.save([torch.ones(1)], "list.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source, message in (
        ("evil.pth", "refused: .*mkdir"),
        ("empty", "the folder empty has none of best.ckpt, .* it holds nothing"),
        ("nothing.ckpt", "it is empty"),
        ("~/list.pt", f"{tmp_path}/list.pt holds no weights by name"),
        ("none/0", "there is no none/0; it may be the folder of a run"),
        ("soft_nanno", "there is no soft_nanno"),
        ("soft_huge", "the authors published no weights of soft_huge"),
    ):
        with pytest.raises(InputError, match=f"model.init_from: .*{message}"):
            task(init_from=source)
    assert not (tmp_path / "evil").exists()
    with pytest.raises(InputError, match=r"init_from and model.model_args.checkpoint_path both say"):
        task(init_from="pretrained", model_args={**TINY["model_args"], "checkpoint_path": "x.pth"})


@pytest.mark.parametrize("kind", ["classifier", "retinanet", "semantic_fpn", "upernet", "unet"])
@pytest.mark.parametrize(
    "start",
    [
        {"checkpoint_path": "none.pth"},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": "none.pth"}},
        {"pretrained": True, "pretrained_cfg": {"file": "none.pth"}},
    ],
)
def test_a_file_of_weights_that_is_not_there_is_told_once(kind, start, caplog):
    with pytest.raises(InputError, match=r"model_args: the weights to start from are not there: none.pth$"):
        dense(kind, more=start)
    assert not caplog.records
    with pytest.raises(InputError, match=r"model_args.pretrained_cfg_overlay must be a mapping, got '{file:none.pth}'"):
        dense(kind, more={"pretrained": True, "pretrained_cfg_overlay": "{file:none.pth}"})


def test_a_released_file(tmp_path):
    ema = release(tmp_path / "SOFT_Tiny_norm.pth", "soft_norm_tiny")
    module = ClassificationTask("soft_norm_tiny", 3, init_from=str(tmp_path / "SOFT_Tiny_norm.pth"))
    assert torch.equal(module.model.stages[0].pos_embed.table, ema["pos_embed1"])
    assert module.model.solver.to_dict()["start"] == "halving"  # what the weights are tied to
    assert "made anew: head for 3 classes" in module.loaded


def test_timms_weights(tmp_path):
    weights = released_weights("soft_tiny")
    torch.save(weights, tmp_path / "file.pth")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "file.pth")}}
    module = ClassificationTask("soft_tiny", 3, overlay, init_from="pretrained")
    assert module.loaded.startswith("12.56 M parameters ")
    assert "from timm's soft_tiny.fudan_in1k; made anew: head for 3 classes" in module.loaded
    assert torch.equal(module.model.stages[1].pos_embed.table, weights["pos_embed2"])


def dense(kind, num_classes=3, name="soft_nano", more=None, **arguments):
    small = {**(SMALL if name == "soft_nano" else {}), **(more or {})}
    if kind == "classifier":
        return ClassificationTask(name, num_classes, small, **arguments)
    if kind in ("retinanet", "mask_rcnn"):
        return DetectionTask(name, num_classes, kind, small, SLIM, **arguments)
    return SegmentationTask(name, num_classes, kind, small, "auto", **arguments)


def backbone(module):
    parts = parts_of(module.model)
    state = module.model.state_dict().items()
    short = {k.removeprefix(parts.backbone).removeprefix("model."): v for k, v in state if parts.in_backbone(k)}
    return {name.replace("_", "."): value for name, value in short.items() if name != "record"}


@pytest.mark.parametrize("name", ["soft_nano", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize(
    ("there", "here"), [("classifier", "retinanet"), ("upernet", "classifier"), ("retinanet", "upernet")]
)
def test_a_backbone_goes_from_task_to_task(tmp_path, name, there, here):
    source = dense(there, name=name)
    saved(source, tmp_path / "best.ckpt")
    module = dense(here, name=name, init_from=str(tmp_path))
    ours, theirs = backbone(module), backbone(source)
    both = ours.keys() & theirs.keys()
    assert len(both) > 0.9 * min(len(ours), len(theirs))
    assert all(torch.equal(ours[key], theirs[key]) for key in both)
    assert f"from {tmp_path / 'best.ckpt'}" in module.loaded
    assert ("made anew: all of the head for 3 classes (3 there)" in module.loaded) == (here != "classifier")


def test_what_the_weights_are_tied_to_is_told_in_the_line(tmp_path):
    saved(dense("classifier"), tmp_path / "best.ckpt")
    module = dense("semantic_fpn", more={"landmark_grid": (4, 4)}, init_from=str(tmp_path))  # a warning is an error
    assert "best.ckpt; with their landmark_grid [8, 8] in place of [4, 4]; left out: head;" in module.loaded
    assert module.model.backbone.model.landmark_grid == (8, 8)
    assert "landmark_grid" not in dense("semantic_fpn", init_from=str(tmp_path)).loaded  # which has them too


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn", "semantic_fpn", "upernet"])
def test_of_a_head_of_its_kind_the_layers_of_the_classes_are_made_anew(tmp_path, kind):
    source = dense(kind)
    saved(source, tmp_path / "best.ckpt")
    module = dense(kind, num_classes=4, init_from=str(tmp_path))
    own, theirs = module.model.state_dict(), source.model.state_dict()
    new = {name for name in own if own[name].shape != theirs[name].shape}
    assert new
    for name in own:
        same = own[name].shape == theirs[name].shape and torch.equal(own[name], theirs[name])
        assert same or parts_of(module.model).in_classes(name), name
    whole = dense(kind, init_from=str(tmp_path)).model.state_dict()
    assert all(torch.equal(whole[name], theirs[name]) for name in theirs)


def test_another_image_size_and_other_channels(run_dir):
    module = task(model_args={**SMALL, "in_chans": 3, "img_size": 96}, init_from=str(run_dir))
    assert "stages.0.embed.0.conv adapted from 1 to 3 channels; position tables resampled" in module.loaded
    assert module.model.stages[0].pos_embed.grid == (24, 24)
    grey = weights_of(run_dir)["stages.0.embed.0.conv.weight"]
    torch.testing.assert_close(module.model.stages[0].embed[0].conv.weight.detach(), (grey / 3).repeat(1, 3, 1, 1))


def test_a_hub_that_cannot_be_reached_is_told_once(monkeypatch, caplog):
    def asks_again(name, **_):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise FileNotFoundError("the hub is not there\nand more of it")

    monkeypatch.setattr(creation.timm, "create_model", asks_again)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(InputError, match=r"the weights of hf-hub:anna/x are not there: the hub is not there$"):
        creation.create_model("hf-hub:anna/x", pretrained=True)
    assert not caplog.records
    assert logging.getLogger("huggingface_hub").level == level
