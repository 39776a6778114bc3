import re
import shutil

import pytest
import timm
import torch
import yaml

from softmaxfree.cli import train, validate
from softmaxfree.cli.device import trainer_options
from softmaxfree_cli import main
from tests.cli.quick_run import overrides, read_csv


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The folder of a finished run."""
    return train.run("digits", overrides(), out=str(tmp_path_factory.mktemp("runs")))


def test_a_run_leaves_what_it_promises(run_dir):
    left = {path.name for path in run_dir.iterdir()}
    for name in (
        "config.yaml",
        "best.ckpt",
        "last.ckpt",
        "metrics.csv",
        "curve.png",
        "confusion_matrix.png",
        "summary.json",
        "report.html",
        "best",
    ):
        assert name in left
    assert any(name.startswith("events.out.tfevents") for name in left)
    for picture in ("curve.png", "confusion_matrix.png"):
        assert (run_dir / picture).read_bytes().startswith(b"\x89PNG")


def test_metrics_have_a_row_an_epoch(run_dir):
    rows = read_csv(run_dir / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert [row["step"] for row in rows] == ["4", "8"]
    assert all(
        float(row[key]) > 0 for row in rows for key in ("train/loss", "val/loss", "val/top5", "train/lr", "seconds")
    )


def test_the_exported_folder_holds_the_best_weights(run_dir):
    model = timm.create_model(f"local-dir:{run_dir / 'best'}", pretrained=True)
    best = torch.load(run_dir / "best.ckpt", weights_only=True)["state_dict"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, best[f"model.{name}"]), name
    assert model.pretrained_cfg["label_names"] == list("0123456789")


@pytest.mark.parametrize("weights", ["best.ckpt", "best", "best/model.safetensors"])
def test_validate_finds_the_best_epochs_numbers(run_dir, weights, capsys):
    metrics = validate.run("digits", overrides(), checkpoint=str(run_dir / weights))
    best = max(read_csv(run_dir / "metrics.csv"), key=lambda row: float(row["val/top1"]))
    for key, value in metrics.items():
        assert value == pytest.approx(float(best[key]), rel=1e-6)
    assert f"{100 * metrics['val/top1']:.2f}" in capsys.readouterr().out


def test_validate_takes_the_folder_of_a_run(run_dir, tmp_path, capsys):
    assert main(["validate", str(run_dir), "--device", "cpu"]) == 0
    best = max(float(row["val/top1"]) for row in read_csv(run_dir / "metrics.csv"))
    assert f"{100 * best:.2f}" in capsys.readouterr().out
    shutil.copy(run_dir / "config.yaml", tmp_path)
    assert main(["validate", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"softmaxfree validate: the run {tmp_path} has no checkpoint yet, neither best.ckpt nor last.ckpt: "
        "an epoch leaves the first\n"
    )


@pytest.mark.parametrize(("device", "options"), [("auto", []), ("cpu", ["--trainer.accelerator=cpu"])])
def test_a_device_is_that_of_the_trainer(device, options):
    assert trainer_options(device) == options


def test_a_device_that_is_not_there_is_told(tmp_path, capsys):
    assert main(["train", "digits", "--out", str(tmp_path / "runs"), "--device", "cuda:99"]) == 2
    assert "--device cuda:99 cannot be used here; choose from auto, cpu" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_table_tells_the_best_numbers(tmp_path, capsys):
    """No epoch learns: of equal ones the last is kept."""
    run = train.run("digits", overrides(model__lr=1e-12, model__ema_decay="null"), out=str(tmp_path))
    out = capsys.readouterr().out
    assert f"{100 * float(read_csv(run / 'metrics.csv')[0]['val/top1']):.2f}" in out
    assert re.search(r"best epoch +2 of 2\b", out)
    assert str(run) in out


def test_runs_are_numbered_and_a_trial_leaves_nothing(tmp_path, capsys):
    for number in ("0", "7"):
        (tmp_path / number).mkdir()
    run = train.run("digits", overrides(trainer__fast_dev_run="true"), out=str(tmp_path))
    assert run == tmp_path / "8"
    assert "run       none: of a trial run nothing is kept" in capsys.readouterr().out
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["0", "7"]


def test_the_configuration_repeats_the_run(run_dir, tmp_path):
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["data"]["batch_size"] == 20
    again = train.run(str(run_dir / "config.yaml"), out=str(tmp_path))
    keys = ("train/loss", "val/loss", "val/top1", "train/lr")
    first, second = (read_csv(folder / "metrics.csv") for folder in (run_dir, again))
    assert [[row[key] for key in keys] for row in first] == [[row[key] for key in keys] for row in second]


def test_another_seed_is_another_run(run_dir, tmp_path):
    other = train.run("digits", overrides(run__seed=7), out=str(tmp_path))
    first, second = (read_csv(folder / "metrics.csv")[0]["train/loss"] for folder in (run_dir, other))
    assert first != second


@pytest.mark.slow
def test_a_longer_run_goes_on_by_the_longer_schedule(tmp_path):
    train.run("digits", overrides(), out=str(tmp_path))
    run = train.run("digits", overrides(trainer__max_epochs=4), resume="last", out=str(tmp_path))
    rates = [float(row["train/lr"]) for row in read_csv(run / "metrics.csv")]
    assert run == tmp_path / "0"
    assert len(rates) == 4
    assert rates[0] > rates[1] < rates[2] > rates[3]  # down, and down again from higher up


def test_epochs_without_validation_have_no_numbers_of_it(tmp_path):
    run = train.run("digits", overrides(trainer__check_val_every_n_epoch=2, trainer__max_epochs=3), out=str(tmp_path))
    assert [bool(row["val/loss"]) for row in read_csv(run / "metrics.csv")] == [False, True, False]


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    run = train.run("digits", overrides(trainer__max_epochs=1), out=str(tmp_path))
    monkeypatch.setattr("secrets.token_hex", lambda size: "part")
    (run / ".part.ckpt").symlink_to("/dev/full")  # where the next one is written
    with pytest.raises(OSError, match=r"no space left on the disk .* the last good one"):
        train.run("digits", overrides(), resume="last", out=str(tmp_path))
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 0


def test_a_run_that_could_not_begin_is_not_resumed(tmp_path):
    train.run("digits", overrides(trainer__max_epochs=1), out=str(tmp_path))
    with pytest.raises(ValueError, match=r"data.img_size is 8"):
        train.run("digits", overrides(data__img_size=8), out=str(tmp_path))
    assert train.run("digits", overrides(), resume="last", out=str(tmp_path)) == tmp_path / "0"


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no run in .* to resume"):
        train.run("digits", resume="last", out=str(tmp_path))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "config.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"0/last.ckpt to resume from; the first is written after an epoch"):
        train.run("digits", resume="last", out=str(tmp_path))


def test_resuming_another_model(run_dir, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes((run_dir / "last.ckpt").read_bytes())
    with pytest.raises(ValueError, match=r"checkpoint of soft_nano with 10 classes does not fit the model"):
        train.run("digits", overrides(model__model_args__embed_dims="[8,16,24,40]"), resume=str(path))


def test_a_non_finite_loss_keeps_the_last_good_checkpoint(tmp_path):
    train.run("digits", overrides(trainer__max_epochs=1), out=str(tmp_path))
    mad = overrides(model__lr=1e30, trainer__gradient_clip_val="null")
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d \(epoch 1, .* is .*0/last.ckpt"):
        train.run("digits", mad, resume="last", out=str(tmp_path))
    checkpoint = torch.load(tmp_path / "0" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(weight.isfinite().all() for weight in checkpoint["current_model_state"].values())


def test_two_runs_that_begin_together_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_numbers", lambda folder: [])  # both have counted before either made its folder
    first, second = (train.run("digits", overrides(trainer__max_epochs=1), out=str(tmp_path)) for _ in range(2))
    assert (first, second) == (tmp_path / "0", tmp_path / "1")
    assert (first / "best.ckpt").is_file()


def test_a_run_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"model.lr"):
        train.run("digits", overrides(model__lr=-1), out=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_in_a_folder_of_others_is_left_alone(run_dir, tmp_path):
    other = tmp_path / "downloads"
    other.mkdir()
    (other / "last.ckpt").write_bytes((run_dir / "last.ckpt").read_bytes())
    (other / "best.ckpt").write_text("somebody else's")
    run = train.run(
        "digits", overrides(trainer__max_epochs=3), resume=str(other / "last.ckpt"), out=str(tmp_path / "a")
    )
    assert run == tmp_path / "a" / "0"
    assert len(read_csv(run / "metrics.csv")) == 3
    assert (other / "best.ckpt").read_text() == "somebody else's"
    assert sorted(path.name for path in other.iterdir()) == ["best.ckpt", "last.ckpt"]
