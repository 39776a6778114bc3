"""What was trained is what is used: by validation, prediction and a resumed run, from the checkpoint alone."""

import json
import shutil

import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image
from skimage import data as photographs

from softmaxfree.cli import train, validate
from softmaxfree.cli.checkpoint import load_classifier, load_task
from softmaxfree.models.segmentation import Segmenter
from softmaxfree.tasks import DetectionTask, loading
from softmaxfree.weights import read_record
from softmaxfree_cli import main
from tests.cli.quick_run import overrides, read_csv

NANO = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 1, 1, 1)}
FOLDERS = """
task: softmaxfree.tasks.ClassificationTask
datamodule: softmaxfree.data.ImageFolderDataModule
model: {name: soft_nano, num_classes: 2, warmup_epochs: 0, model_args: {embed_dims: [8,16,24,32], num_heads: [1,1,1,1]}}
data: {root: ROOT, batch_size: 4, num_workers: 0, auto_augment: null}
trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of photographs."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "val"):
        for name in ("brick", "grass"):
            folder = root / split / name
            folder.mkdir(parents=True)
            whole = Image.fromarray(getattr(photographs, name)())
            for i in range(4):
                box = (i * 64, (split == "val") * 64, i * 64 + 64, (split == "val") * 64 + 64)
                whole.crop(box).save(folder / f"{i}.png")
    return root


def start_weights(kind, folder):
    """Arguments that start from weights of ten other classes at 64 pixels, and what is to go away later."""
    model = timm.create_model("soft_nano", num_classes=10, **NANO)
    model.set_solver({"name": "newton", "iters": 9})
    names = [str(i) for i in range(10)]
    prepared = {"input_size": (3, 64, 64), "mean": (0.1,) * 3, "std": (0.9,) * 3}
    if kind == "folder":
        where = folder / "start"
        config = {"label_names": names}
        timm.models.save_for_hf(model, str(where), config, safe_serialization=True, data_config=prepared)
        return [f"--model.name=local-dir:{where}", "--model.model_args.pretrained=true"], where
    where = folder / "start.safetensors"
    safetensors.torch.save_file(model.state_dict(), where)
    overlay = {"file": str(where), "num_classes": 10, "label_names": names, **prepared}
    return [
        "--model.model_args.pretrained=true",
        f"--model.model_args.pretrained_cfg_overlay={json.dumps(overlay)}",
    ], where


@pytest.fixture(scope="module", params=["overlay", "folder"])
def tuned(request, photos, tmp_path_factory):
    """A run that was fine-tuned at 32 pixels from weights that are there no more, and its recipe."""
    folder = tmp_path_factory.mktemp("tuned")
    recipe = folder / "mine.yaml"
    recipe.write_text(FOLDERS.replace("ROOT", str(photos)))
    start, where = start_weights(request.param, folder)
    run = train.run(str(recipe), [*start, "--data.img_size=32"], out=str(folder / "runs"))
    where.rename(folder / "gone")
    return run, recipe


@pytest.mark.parametrize("weights", ["best.ckpt", "best"])
def test_prediction_takes_size_and_names_of_the_training(tuned, photos, weights):
    run, _ = tuned
    loaded = load_classifier(str(run / weights), None)
    assert loaded.class_names == ["brick", "grass"]
    assert tuple(loaded.data_config["input_size"]) == (3, 32, 32)
    assert tuple(loaded.data_config["mean"]) == timm.data.IMAGENET_DEFAULT_MEAN
    assert loaded.model.solver.iters == 9
    weights = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(loaded.model.head.weight, weights["model.head.weight"])


def test_prediction_at_another_size_is_asked_for(tuned, photos, capsys):
    run, _ = tuned
    assert load_classifier(str(run / "best"), None, size=48).data_config["input_size"] == (3, 48, 48)
    argv = ["predict", str(photos / "val"), "--checkpoint", str(run / "best.ckpt"), "--format", "csv"]
    own, larger, same = [(main([*argv, *more]), capsys.readouterr().out) for more in ((), ["--size=48"], ["--size=32"])]
    assert (0, same[1]) == own == same != larger


@pytest.mark.parametrize("weights", ["best.ckpt", "best"])
def test_validation_needs_no_other_file_and_takes_the_size_of_the_training(tuned, weights, capsys):
    run, recipe = tuned
    metrics = validate.run(str(recipe), ["--data.crop_pct=0.875"], checkpoint=str(run / weights))
    assert metrics["val/loss"] == pytest.approx(float(read_csv(run / "metrics.csv")[0]["val/loss"]), rel=1e-5)


def test_a_size_in_the_recipe_gives_way_to_the_trained_one_and_an_option_does_not(tuned, tmp_path, capsys):
    run, recipe = tuned
    other = tmp_path / "other.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["data"]["img_size"] = 64
    other.write_text(yaml.safe_dump(content))
    metrics = validate.run(str(other), checkpoint=str(run / "best.ckpt"))
    assert metrics["val/loss"] == pytest.approx(float(read_csv(run / "metrics.csv")[0]["val/loss"]), rel=1e-5)
    assert "not as the recipe says: data.img_size 64 -> 32" in capsys.readouterr().out
    assert validate.run(str(other), ["--data.img_size=64"], checkpoint=str(run / "best.ckpt")) != metrics


def test_a_run_goes_on_without_the_weights_that_it_started_from(tuned, tmp_path):
    run, recipe = tuned
    copy = shutil.copytree(run, tmp_path / "0")
    assert train.run(str(recipe), ["--trainer.max_epochs=2"], resume=str(copy / "last.ckpt")) == copy
    assert len(read_csv(copy / "metrics.csv")) == 2
    assert read_record(copy / "last.ckpt").arguments["name"] == "soft_nano"


def test_validate_of_a_converted_file_of_0_1_0(tmp_path, photos):
    """Whose solver stands beside the weights."""
    trained = timm.create_model("soft_nano", num_classes=2, solver={"name": "newton", "iters": 3}, **NANO)
    torch.nn.init.normal_(trained.head.weight)
    weights = {name: weight for name, weight in trained.state_dict().items() if name != "record"}
    arguments = {"num_classes": 2, "solver": trained.solver.to_dict(), **NANO}
    metadata = {"architecture": "soft_nano", "model_args": json.dumps(arguments)}
    safetensors.torch.save_file(weights, tmp_path / "old.safetensors", metadata)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "new.safetensors", metadata)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(FOLDERS.replace("ROOT", str(photos)))
    old, new = (validate.run(str(recipe), checkpoint=str(tmp_path / f"{name}.safetensors")) for name in ("old", "new"))
    assert old == new
    trained.set_solver("newton")
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "other.safetensors", metadata)
    with pytest.warns(UserWarning, match="which is used"):  # the weights know better than what stands beside them
        assert validate.run(str(recipe), checkpoint=str(tmp_path / "other.safetensors")) != new


# --- runs that go on


# --- runs without a validation


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__max_steps": 3},
        {"trainer__limit_val_batches": 0},
        {"trainer__check_val_every_n_epoch": 5},
        {"trainer__check_val_every_n_epoch": "null", "trainer__val_check_interval": 1000},
    ],
)
def test_a_run_without_a_validation_ends_with_its_last_weights(changes, tmp_path, capsys):
    run_dir = train.run("digits", overrides(**changes), out=str(tmp_path))
    said = capsys.readouterr().out
    assert f"no validation was run during the training: what is kept are its last weights, {run_dir}/last.ckpt" in said
    assert ("top-1" in said) == ("trainer__limit_val_batches" not in changes)
    assert not (run_dir / "best.ckpt").exists()
    last = torch.load(run_dir / "last.ckpt", weights_only=True)
    assert last["global_step"] == (3 if "trainer__max_steps" in changes else 8)
    saved = safetensors.torch.load_file(run_dir / "last" / "model.safetensors")
    assert all(torch.equal(weight, last["state_dict"][f"model.{name}"]) for name, weight in saved.items())


def test_scores_in_the_middle_of_an_epoch_are_those_of_the_weights_kept(tmp_path):
    changes = {"trainer__check_val_every_n_epoch": "null", "trainer__val_check_interval": 3}
    run_dir = train.run("digits", overrides(**changes), out=str(tmp_path))
    assert torch.load(run_dir / "best.ckpt", weights_only=True)["global_step"] in (3, 6)


# --- dense tasks


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Folders of a detector's and a segmenter's run at 64 pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        found = {}
        for task, recipe in (("detection", "scenes_detection"), ("segmentation", "scenes_segmentation")):
            out = tmp_path_factory.mktemp(task)
            quick = ["--data.train=4", "--data.val=2", "--data.batch_size=2", "--data.img_size=64"]
            quick += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--model.ema_decay=null"]
            quick += ["--trainer.log_every_n_steps=1", "--trainer.precision=32-true"]  # in which `validate` computes
            found[task] = train.run(recipe, quick, out=str(out)), recipe
        yield found


@pytest.mark.parametrize(("task", "key"), [("detection", "val/map"), ("segmentation", "val/loss")])
def test_dense_tasks_are_validated_at_the_size_of_training(dense, task, key, capsys):
    run_dir, recipe = dense[task]
    metrics = validate.run(recipe, ["--data.train=4", "--data.val=2"], checkpoint=str(run_dir / "best.ckpt"))
    assert "data.img_size" not in read_csv(run_dir / "metrics.csv")[0]
    assert metrics[key] == pytest.approx(float(read_csv(run_dir / "metrics.csv")[0][key]), rel=1e-5)


def test_dense_tasks_predict_at_the_size_of_training(dense):
    task, _ = loading.load_task(dense["detection"][0] / "best.ckpt")  # which draws the pictures of a run
    assert task.model.size == (64, 64)
    again = DetectionTask.load_from_checkpoint(dense["detection"][0] / "best.ckpt", map_location="cpu")
    assert again.model.size == (64, 64)
    detector = load_task(str(dense["detection"][0] / "best.ckpt"), "detection")
    assert detector.task.model.size == detector.size == (64, 64)
    assert load_task(str(dense["detection"][0] / "best.ckpt"), "detection", size=96).task.model.size == (96, 96)
    assert load_task(str(dense["segmentation"][0] / "best.ckpt"), "segmentation").size == (64, 2048)


def test_a_strip_stays_a_strip(dense, tmp_path, monkeypatch):
    """3000 x 60 pixels were enlarged to 25600 x 512. Now they are seen as they are, or with --size as in validation."""
    Image.fromarray(photographs.astronaut()).resize((3000, 60)).save(tmp_path / "strip.png")
    seen = []
    for name in ("forward", "predict_classes"):
        real = getattr(Segmenter, name)
        monkeypatch.setattr(
            Segmenter,
            name,
            lambda self, images, *args, real=real: seen.append(images[-1].shape[-2:]) or real(self, images, *args),
        )
    run = dense["segmentation"][0]
    argv = ["predict", str(tmp_path / "strip.png"), "--checkpoint", str(run), "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert main([*argv, "--size", str(read_record(run / "best.ckpt").data_config["size"][0])]) == 0
    assert seen == [(60, 3000), (41, 2048)]
    with Image.open(tmp_path / "out" / "strip_classes.png") as classes:
        assert classes.size == (3000, 60)


def test_a_run_ends_after_its_time(tmp_path):
    """One second, of a hundred epochs that take half a minute."""
    run_dir = train.run(
        "digits", overrides(trainer__max_time="00:00:00:01", trainer__max_epochs=100), out=str(tmp_path)
    )
    assert 1 <= len(read_csv(run_dir / "metrics.csv")) < 50


# --- other classes, other images, other optimizers


@pytest.fixture(scope="module")
def renamed(photos, tmp_path_factory):
    """The same photographs under names in another order."""
    root = shutil.copytree(photos, tmp_path_factory.mktemp("renamed") / "data")
    for split in ("train", "val"):
        (root / split / "brick").rename(root / split / "wall")
    return root


def test_data_of_other_classes_is_refused(tuned, renamed):
    run, recipe = tuned
    for weights in ("best.ckpt", "best"):
        with pytest.raises(
            ValueError, match=r"other classes than the data has: class 0 is 'brick' there and 'grass' here"
        ):
            validate.run(str(recipe), [f"--data.root={renamed}"], checkpoint=str(run / weights))
    more = [f"--data.root={renamed}", "--trainer.max_epochs=2"]
    with pytest.raises(ValueError, match=r"other classes than the data has"):
        train.run(str(recipe), more, resume=str(run / "last.ckpt"))
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["root"] != str(renamed)


def test_weights_are_no_checkpoint_of_a_run(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.ckpt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    for name in ("a.ckpt", "a.pth"):
        with pytest.raises(ValueError, match=rf"{name} is no checkpoint of `softmaxfree train`"):
            train.run("digits", overrides(), resume=str(tmp_path / name), out=str(tmp_path))


def test_a_recipe_that_is_its_own_base(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match=r"a.yaml is its own base"):
        train.run(str(tmp_path / "a.yaml"), out=str(tmp_path))


def test_a_run_without_a_step(tmp_path):
    with pytest.raises(ValueError, match=r"no training step was run"):
        train.run("digits", overrides(trainer__limit_train_batches=0), out=str(tmp_path))
