"""Detection and segmentation from the command line: a run, its pictures, its tables, predictions on files."""

import json
import os
import re
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from softmaxfree.cli import predict
from softmaxfree.drawing import colour_classes
from softmaxfree.errors import InputError
from softmaxfree.models.windows import slide
from softmaxfree.tasks.loading import load_task
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
    longest = {"detection": 64, "segmentation": summary["data"]["measured_size"][1]}[task]
    assert f"each resized to a shorter side of 64 pixels (the longer one has {longest} at most)" in page


def test_a_report_counts_the_boxes_of_each_class_that_validated(runs):
    summary = json.loads((runs["detection"] / "summary.json").read_text(encoding="utf-8"))
    truth = json.loads(next(Path(os.environ["XDG_CACHE_HOME"]).rglob("*val*.json")).read_text(encoding="utf-8"))
    counts = Counter(box["category_id"] for box in truth["annotations"])
    expected = [counts[category["id"]] for category in sorted(truth["categories"], key=lambda each: each["id"])]
    assert summary["data"]["val_class_counts"] == expected
    page = (runs["detection"] / "report.html").read_text(encoding="utf-8")
    assert "<th>boxes trained on</th><th>boxes validated</th>" in page
    for name, count in zip(summary["data"]["class_names"], expected, strict=True):
        assert re.search(rf"<tr><td>{name}</td><td>\d+</td><td>{count}</td>", page)


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


def predicted(capsys, out, *argv):
    """Runs the command, and returns what it lists and prints."""
    assert main(["predict", *map(str, argv), "--out", str(out)]) == 0
    return json.loads((out / "predictions.json").read_text()), capsys.readouterr()


def test_detections_are_drawn_and_listed(runs, photos, tmp_path, capsys):
    out = tmp_path / "drawn"
    saved = torch.load(runs["detection"] / "best.ckpt", weights_only=True)
    saved["hyper_parameters"]["detector_args"]["box_score_thresh"] = 0.99  # of the network alone
    torch.save(saved, tmp_path / "strict.ckpt")
    results, told = predicted(capsys, out, photos, "--checkpoint", tmp_path / "strict.ckpt", "--threshold", 0)
    assert "skipped" in told.err
    assert told.out == f"2 images drawn into {out}, 1 skipped\n"
    assert [(r["width"], r["height"]) for r in results] == [(80, 131), (150, 97)]
    assert sorted(p.name for p in out.glob("*.png")) == ["colour.png", "grey.png"]
    found = [p for r in results for p in r["predictions"]]
    assert found
    assert max(p["score"] for p in found) < 0.99
    assert {"class", "index", "score", "box", "mask"} == set(found[0])


def test_no_objects_are_counted_too(runs, photos, tmp_path, capsys):
    argv = photos / "grey.png", photos / "colour.jpg", "--checkpoint", runs["detection"], "--threshold", 1
    results, told = predicted(capsys, tmp_path / "drawn", *argv)
    assert told.out == f"2 images drawn into {tmp_path / 'drawn'}, 2 of them without objects\n"
    assert [r["predictions"] for r in results] == [[], []]


def test_classes_are_drawn_and_counted(runs, photos, tmp_path, capsys):
    out = tmp_path / "drawn"
    (result,), _ = predicted(capsys, out, photos / "colour.jpg", "--checkpoint", runs["segmentation"])
    assert sum(p["part"] for p in result["predictions"]) == pytest.approx(1, abs=1e-4)
    classes = pixels(out / result["classes"])
    assert classes.shape == (131, 80)
    assert set(np.unique(classes)) == {p["index"] for p in result["predictions"]}
    names = load_task(str(runs["segmentation"] / "best.ckpt"))[1].class_names
    magnified = pixels(out / result["colours"])[: 4 * 131, : 4 * 80]
    np.testing.assert_array_equal(magnified[::4, ::4], np.asarray(colour_classes(torch.tensor(classes), names)))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("option", ["whole", "window", "size"])
def test_a_segmenter_sees_the_image_whole_or_in_windows_or_resized(option, runs, photos, tmp_path, capsys):
    task, _ = load_task(str(runs["segmentation"] / "best.ckpt"))
    stored = tv.to_image(Image.open(photos / "grey.png").convert("RGB")).as_subclass(Tensor)
    image = tv.to_dtype(stored, scale=True)
    with torch.inference_mode():
        if option == "whole":
            argv, logits = [], task.model([image])[0]
        elif option == "window":
            argv, logits = ["--window", 64, "--overlap", 0.25], slide(task.model, image, (64, 64), (48, 48))
        else:
            argv, small = ["--size", 48], tv.to_dtype(tv.resize(stored, [48, 74]), scale=True)
            logits = F.interpolate(task.model([small])[0][None], size=image.shape[1:], mode="bilinear")[0]
    argv = [photos / "grey.png", "--checkpoint", runs["segmentation"], "--device", "cpu", *argv]
    (result,), told = predicted(capsys, tmp_path / "drawn", *argv)
    same = pixels(tmp_path / "drawn" / result["classes"]) == logits.argmax(0).numpy()
    assert same.mean() > 0.995  # equal logits may be rounded apart
    assert told.err == ""


def test_an_image_much_larger_than_in_training_is_told(runs, tmp_path, capsys):
    Image.effect_noise((131, 140), 80).save(tmp_path / "large.png")
    argv = [tmp_path / "large.png", "--checkpoint", runs["segmentation"]]
    _, told = predicted(capsys, tmp_path / "drawn", *argv)
    assert "1 of them much larger than in training (shorter side up to 131 pixels, there 64)" in told.err
    _, told = predicted(capsys, tmp_path / "drawn", *argv, "--window", "64")
    assert told.err == ""


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_run_needs_no_network(task, runs, photos, tmp_path, capsys, monkeypatch):
    saved = torch.load(runs[task] / "best.ckpt", weights_only=True)
    saved["hyper_parameters"]["model_args"]["pretrained"] = True  # as a file of an older version has it
    torch.save(saved, tmp_path / "best.ckpt")
    monkeypatch.setattr(socket, "socket", None)
    predicted(capsys, tmp_path / "drawn", photos / "colour.jpg", "--checkpoint", tmp_path / "best.ckpt")


def test_what_does_not_fit_is_refused(runs, photos, tmp_path):
    checkpoint = str(runs["detection"] / "best.ckpt")
    image = [str(photos / "colour.jpg")]
    with pytest.raises(InputError, match=r"--task is segmentation, but .*best\.ckpt is of detection"):
        predict.run(image, checkpoint, task="segmentation")
    with pytest.raises(InputError, match="--task detection needs --checkpoint"):
        predict.run(image, task="detection")
    for option, value, only in (("window", 64, "segmentation"), ("topk", 3, "classification")):
        with pytest.raises(InputError, match=rf"--{option} is for {only}, but .* is of detection"):
            predict.run(image, checkpoint, **{option: value})
    with pytest.raises(InputError, match="give --window too"):
        predict.run(image, runs["segmentation"], overlap=0.5)
    with pytest.raises(InputError, match="--overlap must be from 0 to below 1"):
        predict.run(image, runs["segmentation"], window=64, overlap=32)
    with pytest.raises(InputError, match="--window must be 32 or more for a segmenter, got 16"):
        predict.run(image, runs["segmentation"], window=16)
    with pytest.raises(InputError, match=r"grey\.png would replace .*grey\.png"):
        predict.run([str(photos)], checkpoint, out=str(photos))
    with pytest.raises(InputError, match=r"unreadable image: .*broken\.jpg"):
        predict.run([str(photos / "broken.jpg")], checkpoint, on_error="fail")
