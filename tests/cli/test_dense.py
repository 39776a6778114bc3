"""Detection and segmentation from the command line: a run, its pictures, its tables, predictions on files."""

import json

import pytest
import torch
from PIL import Image

from softmaxfree.cli import predict
from softmaxfree_cli import main
from tests.cli.quick_run import read_csv

# one epoch of two steps on a dozen small scenes
_QUICK = (
    "--data.train", "8", "--data.val", "4", "--data.img_size", "64", "--data.batch_size", "2",
    "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.check_val_every_n_epoch", "1",
    "--model.ema_decay", "null", "--trainer.log_every_n_steps", "1",
)  # fmt: skip

_RECIPES = {"detection": "scenes_instances", "segmentation": "scenes_segmentation"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """Folder of a run, by task."""
    found = {}
    for task, recipe in _RECIPES.items():
        out = tmp_path_factory.mktemp(task)
        assert main(["train", recipe, *_QUICK, "--out", str(out)]) == 0
        found[task] = out / "0"
    return found


@pytest.mark.parametrize(("task", "metric"), [("detection", "val/segm_map"), ("segmentation", "val/miou")])
def test_a_run_leaves_numbers_and_pictures(runs, task, metric):
    run = runs[task]
    assert metric in read_csv(run / "metrics.csv")[0]
    for name in ("curve.png", "predictions.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) > 100
    assert torch.load(run / "best.ckpt", weights_only=True)["class_names"]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["mistakes"]["looked_at"] == 4
    page = (run / "report.html").read_text(encoding="utf-8")
    for item in summary["mistakes"]["items"]:
        assert item["file"] in page
        assert {"truth", "prediction"} <= set(item["pictures"])
    assert (summary["confusion"] is not None) == (task == "segmentation")
    assert page.count("data:image/jpeg") == sum(len(item["pictures"]) for item in summary["mistakes"]["items"])


@pytest.mark.parametrize(
    ("task", "heads"),
    [
        ("detection", ("box AP50 (%)", "mask AP50 (%)", "mask AP (%)")),
        ("segmentation", ("mIoU (%)", "pixel accuracy (%)", "IoU (%)")),
    ],
)
def test_validate_prints_the_table_of_the_task_and_its_classes(runs, capsys, task, heads):
    assert main(["validate", _RECIPES[task], *_QUICK, "--checkpoint", str(runs[task] / "best.ckpt")]) == 0
    out = capsys.readouterr().out
    for head in heads:
        assert head in out
    assert len(out.splitlines()) > 10 + 3  # a line for each digit


@pytest.fixture
def photos(tmp_path):
    """Two images of odd sizes, one of them grey, and a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.effect_noise((150, 97), 80).save(folder / "grey.png")
    Image.effect_mandelbrot((80, 131), (-2, -1, 1, 1), 50).convert("RGB").save(folder / "colour.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_detections_are_drawn_and_listed(runs, photos, tmp_path, capsys):
    out = tmp_path / "drawn"
    arguments = ["--task", "detection", "--checkpoint", str(runs["detection"] / "best.ckpt"), "--threshold", "0"]
    assert main(["predict", str(photos), *arguments, "--out", str(out)]) == 0
    assert "skipped" in capsys.readouterr().err
    results = json.loads((out / "predictions.json").read_text())
    assert [(r["width"], r["height"]) for r in results] == [(80, 131), (150, 97)]
    assert sorted(p.name for p in out.glob("*.png")) == ["colour.png", "grey.png"]
    found = [p for r in results for p in r["predictions"]]
    assert found
    assert {"class", "index", "score", "box", "mask"} == set(found[0])


def test_classes_are_drawn_and_counted(runs, photos, tmp_path):
    out = tmp_path / "drawn"
    arguments = ["--task", "segmentation", "--checkpoint", str(runs["segmentation"] / "best.ckpt")]
    assert main(["predict", str(photos / "colour.jpg"), *arguments, "--out", str(out)]) == 0
    (result,) = json.loads((out / "predictions.json").read_text())
    assert sum(p["part"] for p in result["predictions"]) == pytest.approx(1, abs=1e-4)
    with Image.open(out / "colour_classes.png") as classes:
        assert classes.size == (80, 131)
        assert set(classes.get_flattened_data() if hasattr(classes, "get_flattened_data") else classes.getdata()) == {
            p["index"] for p in result["predictions"]
        }


def test_what_does_not_fit_is_refused(runs, photos, tmp_path):
    checkpoint = str(runs["detection"] / "best.ckpt")
    image = [str(photos / "colour.jpg")]
    with pytest.raises(ValueError, match=r"--task segmentation needs .* is of DetectionTask"):
        predict.run(image, checkpoint, task="segmentation")
    with pytest.raises(ValueError, match="DetectionTask: give --task"):
        predict.run(image, checkpoint)
    with pytest.raises(ValueError, match="--task detection needs --checkpoint"):
        predict.run(image, task="detection")
    with pytest.raises(ValueError, match=r"grey\.png would replace .*grey\.png"):
        predict.run([str(photos)], checkpoint, task="detection", out=str(photos))
    with pytest.raises(ValueError, match=r"unreadable image: .*broken\.jpg"):
        predict.run([str(photos / "broken.jpg")], checkpoint, task="detection", on_error="fail")
