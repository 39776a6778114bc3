"""What a recipe calls auto, and a run of one's own photographs from end to end."""

import csv
import re
import shutil
from types import SimpleNamespace

import pytest
import yaml
from jsonargparse import Namespace
from PIL import Image
from skimage import data as photographs

from softmaxfree.cli import train, validate
from softmaxfree.cli.device import num_processes
from softmaxfree.cli.recipe import load_job
from softmaxfree.cli.settings import decide, take_autos
from softmaxfree.errors import InputError
from softmaxfree.images import find_images
from softmaxfree.report.page import ABSENT
from softmaxfree_cli import main

NARROW = ["--model.model_args.embed_dims=[8,16,24,32]", "--model.model_args.num_heads=[1,1,1,1]"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two textures in folders of 20 and 10 pieces of 40 x 50 pixels, without a split."""
    root = tmp_path_factory.mktemp("own") / "my photos"
    for name, count in (("brick", 20), ("grass", 10)):
        (root / name).mkdir(parents=True)
        picture = Image.fromarray(getattr(photographs, name)())
        for i in range(count):
            picture.crop((20 * i, 10 * i, 20 * i + 50, 10 * i + 40)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """The folder of a run with all that is automatic but the number of epochs, and what it printed."""
    out = tmp_path_factory.mktemp("runs")
    options = [f"--data.root={photos}", "--trainer.max_epochs=2", "--model.class_weights=auto", *NARROW]
    return train.run("classification", options, out=str(out), device="cpu"), options


def test_a_value_that_is_given_wins():
    content = {"task": "t", "model": {"lr": "auto", "num_classes": "auto"}, "trainer": {"accelerator": "auto"}}
    left, options, autos, given = take_autos(content, ["--model.lr=0.5", "--model.warmup_epochs=auto"])
    assert left == {"task": "t", "model": {}, "trainer": {"accelerator": "auto"}}
    assert options == ["--model.lr=0.5"]
    assert autos == ["model.num_classes", "model.warmup_epochs"]
    assert given["model.lr"] == ("0.5", "given")
    for options, wins in ((["--model.lr=1", "--model.lr=auto"], "auto"), (["--model.lr=auto", "--model.lr=1"], "1")):
        _, kept, autos, _ = take_autos(content, options)  # the last one of a key
        assert (kept, "model.lr" in autos) == (([], True) if wins == "auto" else (["--model.lr=1"], False))
    several = ["--trainer.callbacks+=A", "--model.lr=1", "--trainer.callbacks+=B", "--model.lr=2"]
    assert take_autos(content, several)[1] == several


@pytest.mark.parametrize(
    ("environment", "arguments", "processes"),
    [
        ({}, {"devices": "auto"}, (1, 1)),
        ({}, {"devices": 2, "num_nodes": 3}, (6, 2)),
        ({}, {"devices": "0,2"}, (2, 2)),
        ({}, {"devices": [1], "num_nodes": 2}, (2, 1)),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, {"devices": "auto"}, (8, 4)),
    ],
)
def test_settings_follow_from_the_number_of_processes(environment, arguments, processes, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    trainer = Namespace(**{"accelerator": "cpu", "num_nodes": 1, "accumulate_grad_batches": 1, **arguments})
    assert num_processes(trainer) == processes
    config = Namespace(model=Namespace(), trainer=trainer)
    data = SimpleNamespace(num_images={"train": 6400}, batch_size=16)
    epochs = decide(["trainer.max_epochs"], config, data, training=True)["trainer.max_epochs"].value
    assert epochs == min(60, max(20, round(4000 * 16 * processes[0] / 6400)))


def test_what_follows_from_the_photographs(photos):
    job = load_job("classification", [f"--data.root={photos}", *NARROW])
    assert {key: value for key, (value, _) in job.settings.items() if not key.startswith("model.model_args")} == {
        "data.root": str(photos),
        "data.img_size": 64,  # 40, but 64 at least
        "data.batch_size": 8,  # of 24 training images
        "data.num_workers": 0,
        "model.num_classes": 2,
        "trainer.max_epochs": 60,
        "model.opt": "muon",
        "model.lr": 3e-3,
        "model.backbone_lr_scale": 1,
        "model.weight_decay": 0.05,
        "model.warmup_epochs": 6,  # a tenth of 180 updates
        "model.ema_decay": pytest.approx(1 - 1 / 18, abs=1e-5),
        "run.early_stopping": 15,
    }
    assert job.trainer["max_epochs"] == 60
    assert job.task.hparams["num_classes"] == job.data.num_classes == 2
    assert yaml.safe_load(job.config)["data"]["batch_size"] == 8


def test_trained_weights_are_tuned_gently(photos, finished):
    run, _ = finished
    options = [f"--data.root={photos}", f"--model.init_from={run}", *NARROW]
    job = load_job("classification", options)
    assert [job.settings[f"model.{name}"].value for name in ("opt", "lr", "backbone_lr_scale")] == ["adamw", 1e-3, 0.1]
    assert job.trainer["max_epochs"] == 30
    frozen = load_job("classification", [*options, "--model.freeze=backbone"])
    assert [frozen.settings[f"model.{n}"].value for n in ("lr", "weight_decay", "warmup_epochs")] == [1e-3, 0, 0]


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_where_the_device_multiplies_it(photos, tmp_path, monkeypatch, capsys, fast):
    for module in ("softmaxfree.cli.settings", "softmaxfree.cli.train"):
        monkeypatch.setattr(f"{module}.has_fast_bfloat16", lambda device: fast)
    options = [f"--data.root={photos}", "--trainer.accelerator=cpu", *NARROW]
    job = load_job("classification", [*options, "--trainer.precision=auto"])
    assert job.trainer["precision"] == ("bf16-mixed" if fast else "32-true")
    assert ("no instructions" in job.settings["trainer.precision"].why) is not fast
    asked = ["--trainer.precision=bf16-mixed", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    train.run("classification", [*options, *asked], out=str(tmp_path))
    caution = "caution   bf16-mixed is slower here than 32-true: this device has no instructions that multiply bfloat16"
    assert (caution in capsys.readouterr().out.splitlines()) is not fast


def test_the_first_four_lines_and_the_last_three(photos, tmp_path, capsys):
    run = train.run("classification", [f"--data.root={photos}", "--trainer.max_epochs=1", *NARROW], out=str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"data +.*my photos: 30 images of 2 classes .*24 to train, 6 to validate", lines[0])
    assert re.match(r"model +soft_nano, 0\.\d+ M parameters, from scratch", lines[1])
    assert "data.batch_size 8 (auto: 24 training images)" in lines[2]
    assert "trainer.max_epochs 1 (given)" in lines[2]
    assert lines[3] == f"run       {run}"
    assert [line.split()[0] for line in lines[-3:]] == ["run", "report", "predict"]
    assert lines[-1].endswith(f"--checkpoint {run}") or f"'{run}'" in lines[-1]


def test_what_a_file_of_ones_own_sets_is_told(photos, tmp_path, capsys):
    (tmp_path / "lower.yaml").write_text(
        f"base: classification\ndata: {{root: {photos}, hflip: 0.25}}\nrun: {{early_stopping: null}}\n"
    )
    top = tmp_path / "top.yaml"
    top.write_text(
        "base: lower.yaml\ntrainer: {max_epochs: 3, limit_train_batches: 1}\n"
        "model: {lr: 0.01, opt: auto, model_args: {embed_dims: [8, 16, 24, 32], num_heads: [1, 1, 1, 1]}}\n"
    )
    train.run(str(top), ["--trainer.max_epochs=1"], out=str(tmp_path / "runs"))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("settings"))
    assert line.startswith(f"settings  trainer.max_epochs 1 (given), data.root {photos} ({tmp_path / 'lower.yaml'}), ")
    assert f"data.hflip 0.25 ({tmp_path / 'lower.yaml'}), run.early_stopping null ({tmp_path / 'lower.yaml'})" in line
    assert f"model.lr 0.01 ({top})" in line
    assert f"model.model_args.embed_dims [8, 16, 24, 32] ({top})" in line
    assert "model.opt muon (auto: from scratch)" in line
    assert line.count("trainer.max_epochs") == 1
    assert "all else" not in line


def test_a_file_without_a_base_is_named_once(photos, tmp_path, capsys):
    whole = tmp_path / "whole.yaml"
    assert main(["recipes", "show", "classification", "--out", str(whole)]) == 0
    options = [f"--data.root={photos}", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", *NARROW]
    train.run(str(whole), options, out=str(tmp_path / "runs"))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("settings"))
    assert line.endswith(f", all else as in {whole}")
    assert line.count(str(whole)) == 1
    assert "trainer.limit_train_batches 1 (given)" in line


def test_the_split_stays_with_the_run(photos, finished, tmp_path, capsys):
    run, options = finished
    with (run / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows].count("val") == 6
    assert len(rows) == len(find_images(photos).files)
    metrics = validate.run(str(run))
    assert metrics["val/loss"] == pytest.approx(
        validate.run("classification", options[:1], checkpoint=str(run))["val/loss"]
    )
    late = photos / "grass" / "late.png"
    Image.new("RGB", (50, 40)).save(late)
    try:
        with pytest.raises(InputError, match=r"1 images of the data are not in it, such as grass/late.png"):
            validate.run(str(run))
        with pytest.raises(InputError, match=r"1 images of the data are not in it, such as grass/late.png"):
            train.run("classification", ["--trainer.max_epochs=3"], resume=str(run / "last.ckpt"))
    finally:
        late.unlink()


def test_a_run_is_enough_to_validate_and_to_predict(photos, finished, capsys):
    run, _ = finished
    assert main(["validate", str(run)]) == 0
    assert "grass" in capsys.readouterr().out
    assert main(["predict", str(photos / "grass"), "--checkpoint", str(run), "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("grass/") >= 10


def test_what_cannot_be_decided_is_said():
    config = Namespace(model={}, trainer=Namespace(accumulate_grad_batches=1))
    with pytest.raises(InputError, match=r"how many images it has: give trainer.max_epochs a number"):
        decide(["trainer.max_epochs"], config, SimpleNamespace(num_images={}, batch_size=4), training=True)


def test_a_resumed_run_tells_where_it_goes_on_and_of_other_data(photos, finished, tmp_path, capsys):
    run = shutil.copytree(finished[0], tmp_path / "0")
    with pytest.raises(InputError, match=r"--resume goes on with the weights of its run: --init-from is for a new one"):
        train.run("classification", (), resume=str(run), init_from=str(run))
    train.run("classification", (), resume=str(run))  # its folder
    assert (
        "last.ckpt is of epoch 2 of 2: what is left is measured; a larger trainer.max_epochs would go on"
        in capsys.readouterr().out
    )
    other = shutil.copytree(photos, tmp_path / "other")
    train.run("classification", [f"--data.root={other}", "--trainer.max_epochs=3"], resume=str(run))
    out = capsys.readouterr().out
    assert "last.ckpt, from epoch 3 on" in out
    assert f"other data than when the run began: data.root {photos} -> {other}" in out


def test_other_data_is_measured_as_a_whole(photos, finished, tmp_path, capsys):
    other = shutil.copytree(photos, tmp_path / "other")
    shutil.rmtree(other / "brick")
    shutil.copytree(photos / "brick", other / "brick", ignore=lambda folder, names: names[:15])
    validate.run(str(finished[0]), [f"--data.root={other}"])
    assert "0 to train, 15 to validate" in capsys.readouterr().out


def test_validate_tells_how_many_images_were_trained_on(photos, finished, tmp_path, capsys):
    run = finished[0]
    validate.run(str(run))
    assert "trained   none of the 6 images measured was trained on" in capsys.readouterr().out
    validate.run(str(run), [f"--data.root={shutil.copytree(photos, tmp_path / 'copy')}"])
    out = capsys.readouterr().out
    assert f"trained   24 of the 30 images measured were trained on, such as {tmp_path / 'copy'}" in out
    for i, path in enumerate(sorted((tmp_path / "copy").glob("*/*.png"))):
        path.rename(path.with_name(f"renamed {i}.png"))
    validate.run(str(run), [f"--data.root={tmp_path / 'copy'}"])
    assert "trained   24 of the 30 images measured were trained on" in capsys.readouterr().out


def test_images_that_were_trained_on_are_known_where_they_are_gone(finished, tmp_path, photos, capsys):
    old = shutil.copytree(photos, tmp_path / "old")
    options = [f"--data.root={old}", "--trainer.max_epochs=1", *NARROW]
    run = train.run("classification", options, out=str(tmp_path / "runs"), device="cpu")
    old.rename(tmp_path / "new")
    validate.run(str(run), [f"--data.root={tmp_path / 'new'}"])
    assert "trained   24 of the 30 images measured were trained on" in capsys.readouterr().out


def test_a_finished_run_is_not_rewritten_by_other_data(photos, finished, tmp_path, capsys):
    run = shutil.copytree(finished[0], tmp_path / "0")
    summary, report = ((run / name).read_bytes() for name in ("summary.json", "report.html"))
    other = shutil.copytree(photos, tmp_path / "other")
    with pytest.raises(InputError, match=rf"0 is finished, and was not trained by .*: data.root {photos} -> {other};"):
        train.run("classification", [f"--data.root={other}"], resume=str(run))
    with pytest.raises(InputError, match=r"was not trained by what is given now: model.lr 0.003 -> 0.5; "):
        train.run("classification", ["--model.lr=0.5"], resume=str(run))
    assert (run / "summary.json").read_bytes() == summary
    assert (run / "report.html").read_bytes() == report
    capsys.readouterr()
    train.run("classification", ["--data.batch_size=4", f"--data.root={photos}/"], resume=str(run))
    assert f"data      {photos}: 30 images of 2 classes" in capsys.readouterr().out


def test_a_report_tells_of_earlier_training_images(photos, finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "0")
    other = shutil.copytree(photos, tmp_path / "other")
    (run / "split.csv").unlink()
    for path in other.glob("*/*.png"):
        path.rename(path.with_name(f"other {path.name}"))
    train.run("classification", [f"--data.root={other}", "--trainer.max_epochs=3"], resume=str(run))
    told = f"the run was begun on other images, 24 of {photos}, and went on with those of now"
    assert told in (run / "report.html").read_text()
    (other / "brick" / "new.png").write_bytes((other / "brick" / "other 1.png").read_bytes())
    (run / "split.csv").unlink()
    with pytest.raises(InputError, match=r"its training images are others now, such as brick/"):
        train.run("classification", [], resume=str(run))


def test_data_of_some_of_the_classes_are_measured_and_others_refused(photos, finished, tmp_path, capsys):
    other = shutil.copytree(photos, tmp_path / "other")
    shutil.rmtree(other / "brick")
    with pytest.warns(UserWarning, match=r"there are no images of brick, which the model knows"):
        validate.run(str(finished[0]), [f"--data.root={other}"])
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "brick " in line and ABSENT in line)
    assert "10 images of 2 classes" in "".join(lines)
    shutil.copytree(photos / "brick", other / "lion")
    shutil.copytree(photos / "brick", other / "brick")
    with pytest.raises(InputError, match=r"classes that the weights do not know: lion; they know brick, grass"):
        validate.run(str(finished[0]), [f"--data.root={other}"])


@pytest.mark.parametrize(
    ("mixer", "name", "text", "value"),
    [
        ("softplus", "power", "3", 3),
        ("softn", "floor", "1e-3", 1e-3),
        ("soft", "normalize", "true", True),
        ("soft", "landmark_grid", "[2, 2]", [2, 2]),
        ("soft", "landmark_sampling", "mean", "mean"),
    ],
)
def test_options_inside_of_an_argument_have_their_type(mixer, name, text, value):
    own = ["--model.name=soft_nano", *NARROW, f"--model.model_args.mixer={mixer}"]
    job = load_job("digits", [*own, f"--model.model_args.mixer_args.{name}={text}"])
    found = job.task.hparams["model_args"]["mixer_args"][name]
    assert (found, type(found)) == (value, type(value))
    assert yaml.safe_load(job.config)["model"]["model_args"]["mixer_args"][name] == value
