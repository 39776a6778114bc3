"""`softmaxfree explain`: from a checkpoint and a picture to a picture and numbers."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from softmaxfree.cli.explain_inputs import Subject
from softmaxfree.errors import InputError
from softmaxfree.explain import AttentionMap, attention
from softmaxfree.explain.pictures import draw_side_by_side
from softmaxfree_cli import main

pytest.importorskip("pytorch_grad_cam")

NAMES = ["ant", "bee", "cat", "dog"]
MODEL = {
    "num_classes": 4,
    "img_size": 64,
    "embed_dims": (16, 16, 24, 32),
    "num_heads": (2, 2, 2, 4),
    "depths": (1, 1, 1, 1),
    "mixer_args": {"landmark_sampling": "mean"},
}
DATA = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("soft_nano", **MODEL, pretrained_cfg_overlay={**DATA, "label_names": NAMES}).eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    told = {"label_names": NAMES}
    timm.models.save_for_hf(model, str(folder), model_config=told, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Wider than high: 96 of its 144 columns are seen, from column 24 on."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.effect_mandelbrot((144, 96), (-2, -1, 1, 1), 50).convert("RGB").save(path, quality=95)
    return path


@pytest.fixture
def explained(saved, photo, tmp_path, capsys):
    """Runs the command on the photo; returns the numbers and the picture."""

    def run(*argv):
        assert main(["explain", str(photo), "--checkpoint", str(saved), "--out", str(tmp_path), *map(str, argv)]) == 0
        numbers = max(tmp_path.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        picture = numbers.with_suffix(".png")
        out = capsys.readouterr().out
        assert str(picture) in out
        return json.loads(numbers.read_text(encoding="utf-8")), picture

    return run


def assert_drawn(path, *colours):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(pixels) > 100_000
    assert len(np.unique(pixels, axis=0)) > 200
    for colour in colours:
        assert (np.abs(pixels.astype(int) - colour).max(1) < 8).any(), colour


def test_attention(model, photo, explained):
    told, picture = explained("--point", "71,40", "--stage", 1, "--head", "all")
    image = Image.open(photo).resize((96, 64), Image.Resampling.BILINEAR).crop((16, 0, 80, 64))
    x = torch.tensor(np.asarray(image) / 127.5 - 1).float().permute(2, 0, 1)
    found = attention(model, x, (round((71 - 24) * 64 / 96), round(40 * 64 / 96)), stage=1)
    assert told["token"] == found.token
    assert told["query"] == [71, 40]
    assert (told["layer"], told["mixer"], told["grid"]) == ("stages.1.blocks.0.attn", "soft", [8, 8])
    assert len(told["heads"]) == 2
    for head, sums in zip(told["heads"], found.row_sums, strict=True):
        assert head["row_sum"] == pytest.approx(float(sums), rel=1e-4)
        assert head["smallest"] == pytest.approx(float(found.weights[head["head"]].min()), rel=1e-2, abs=1e-4)
        assert len(head["strongest"]) == 10
    assert told["mean"]["row_sum"] == pytest.approx(float(found.row_sums.mean()), rel=1e-2)
    assert_drawn(picture, (255, 230, 0))  # the ring around the query


@pytest.mark.parametrize(("scale", "faint"), [(1, False), (1e5, True)])
def test_an_attention_that_adds_nothing_is_told(model, photo, tmp_path, capsys, scale, faint):
    far = copy.deepcopy(model)  # landmarks, means of queries, are then far from each of them
    with torch.no_grad():
        for name, weight in far.stages[0].blocks[0].attn.named_parameters():
            weight.mul_(scale if name.startswith("q") else 1)
    timm.models.save_for_hf(far, str(tmp_path / "far"), model_config={"label_names": NAMES}, safe_serialization=True)
    argv = ["explain", str(photo), "--checkpoint", str(tmp_path / "far"), "--out", str(tmp_path / "out")]
    assert main([*argv, "--stage", "0", "--point", "71,40"]) == 0
    assert ("adds next to nothing in this layer" in capsys.readouterr().out) == faint


@pytest.mark.parametrize("what", ["cam", "landmarks", "inverse", "mixers"])
def test_the_other_kinds(what, explained):
    told, picture = explained("--what", what)
    assert told["what"] == what
    assert_drawn(picture)
    if what == "cam":
        assert told["class"] in NAMES
        assert told["layer"] == "stages.3"
    elif what == "landmarks":
        assert all(sum(head["shares"]) == pytest.approx(1, abs=1e-4) for head in told["heads"])
        assert len(told["places"]) == len(told["heads"][0]["shares"])
    elif what == "inverse":
        assert [layer["layer"] for layer in told["layers"]] == [f"stages.{i}.blocks.0.attn" for i in range(3)]
        assert all(head["residual"] < 0.1 for layer in told["layers"] for head in layer["heads"])
    else:
        assert list(told["mixers"]) == ["softmax", "exact Gaussian", "low rank"]
        assert told["mixers"]["softmax"]["row_sum"] == pytest.approx(1, abs=1e-4)


def test_a_faint_low_rank_is_drawn_on_its_own_scale():
    weights = torch.linspace(0.5, 1, 16).view(1, 4, 4)
    maps = {
        name: AttentionMap(factor * weights, torch.zeros(1, 0), 0, "l", "soft", 8, (32, 32), (32, 32))
        for name, factor in (("softmax", 0.1), ("exact Gaussian", 1.0), ("low rank", 1e-4), ("low rank, near", 0.9))
    }
    figure = draw_side_by_side([(Image.new("RGB", (32, 32)), maps, (3, 3), "here")])
    panels = [axes for axes in figure.axes if axes.get_title()][1:]
    assert [axes.images[0].norm.vmax for axes in panels] == pytest.approx([0.1, 1.0, 1e-4, 1.0])
    assert ["own scale" in axes.get_title() for axes in panels] == [False, False, True, False]


def test_the_class_of_a_map_can_be_chosen(explained):
    told, _ = explained("--what", "cam", "--target", 2, "--stage", 1, "--method", "layercam")
    assert (told["class"], told["target"], told["layer"], told["method"]) == ("cat", 2, "stages.1", "layercam")
    named, _ = explained("--what", "cam", "--target", "cat", "--stage", 1, "--method", "layercam")
    assert named == told
    assert told["cells"] == [8, 8]  # a cell of stage 1 has 8 pixels


def test_the_figure_of_photographs(tmp_path, capsys):
    assert main(["explain", "--what", "mixers", "--out", str(tmp_path)]) == 0
    assert "astronaut: low rank, 49 landmarks" in capsys.readouterr().out
    told = json.loads((tmp_path / "photographs_mixers.json").read_text(encoding="utf-8"))
    assert len(told["photographs"]) == 3
    for one in told["photographs"]:
        near, far = (one["mixers"][f"low rank, {m} landmarks"] for m in (256, 49))
        assert near["distance_to_exact"] < far["distance_to_exact"] < 0.5
        assert far["smallest"] < 0  # low rank has negative weights
        assert one["mixers"]["exact Gaussian"]["smallest"] >= 0
        assert one["mixers"]["softmax"]["row_sum"] == pytest.approx(1, abs=1e-4)
    assert_drawn(tmp_path / "photographs_mixers.png", (255, 230, 0))


def test_an_earlier_result_is_replaced_and_nothing_else(explained, photo, saved, tmp_path, capsys):
    explained()
    explained("--point", "60,30")
    (tmp_path / "photo_attention.json").write_text("[]", encoding="utf-8")
    argv = ["explain", str(photo), "--checkpoint", str(saved), "--out", str(tmp_path)]
    assert main(argv) == 2
    assert "photo_attention.json" in capsys.readouterr().err
    assert (tmp_path / "photo_attention.json").read_text(encoding="utf-8") == "[]"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--point", "10,40"], "x from 24 to 119 and y from 0 to 95: the preparation cuts the rest off; got 10,40"),
        (["--point", "400,40"], "--point must be in the picture, x from 0 to 143 and y from 0 to 95; got 400,40"),
        (["--point", "12"], "--point must be x,y in pixels, such as 120,80, or cls; got 12"),
        (["--point", "a,b"], "--point must be x,y in pixels"),
        (["--stage", "4"], "stage must be 0 to 3"),
        (["--stage", "0", "--block", "1"], "block must be 0 to 0 in stage 0"),
        (["--head", "9"], "head must be 0 to 3, 'mean' or 'all', got 9"),
        (["--head", "first"], "--head must be a number, mean or all; got first"),
        (["--what", "cam", "--target", "4"], "--target must be the number of a class, 0 to 3, got 4"),
        (["--target", "1"], "--target is for --what cam"),
        (["--what", "cam", "--target", "cow"], "or its number; got cow"),
        (["--what", "cam", "--head", "1"], "--head is for --what attention, not for cam"),
        (["--what", "inverse", "--stage", "1"], "--stage is for --what attention, mixers, landmarks, cam, not for"),
        (["--what", "landmarks", "--method", "layercam"], "--method is for --what cam, not for landmarks"),
        (["--what", "inverse", "--point", "60,40"], "--point is for --what attention"),
        (["--what", "landmarks", "--stage", "3"], "a mixer without landmarks"),
        (["--what", "mixers", "--stage", "3"], "must be of soft, or of gaussian with tied keys"),
        (["--size", "0"], "--size must be 1 or more, got 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(argv, message, photo, saved, tmp_path, capsys):
    assert main(["explain", str(photo), "--checkpoint", str(saved), "--out", str(tmp_path / "out"), *argv]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_a_picture_or_checkpoint(saved, photo, capsys):
    for argv, message in (
        (["--checkpoint", str(saved)], "--what attention needs a picture"),
        (["--what", "mixers", "--checkpoint", str(saved)], "--checkpoint needs a picture"),
        ([str(photo)], "give --checkpoint PATH, or --model NAME"),
        (["none.jpg", "--checkpoint", str(saved)], "there is no file none.jpg"),
        ([str(photo), "--checkpoint", "nowhere"], "there is no such checkpoint"),
    ):
        assert main(["explain", *argv]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["scenes_instances", "scenes_segmentation"])
def test_detections_and_segments(recipe, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick = (
        "--data.train", "2", "--data.val", "2", "--data.img_size", "64", "--data.batch_size", "2",
        "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--model.ema_decay", "null",
        "--trainer.log_every_n_steps", "1",
    )  # fmt: skip
    assert main(["train", recipe, *quick, "--out", str(tmp_path / "runs")]) == 0
    argv = ["explain", str(photo), "--checkpoint", str(tmp_path / "runs" / "0"), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main([*argv, "--what", "attention", "--point", "143,95", "--stage", "1"]) == 0
    told = json.loads((tmp_path / "out" / "photo_attention.json").read_text(encoding="utf-8"))
    assert told["layer"].endswith("stages.1.blocks.0.attn")
    code = main([*argv, "--what", "cam"])
    if recipe == "scenes_instances" and code == 2:  # it has learned nothing, and may detect nothing
        assert "detects none" in capsys.readouterr().err
        return
    told = json.loads((tmp_path / "out" / "photo_cam.json").read_text(encoding="utf-8"))
    assert told["of"] == ("detection" if recipe == "scenes_instances" else "segmentation")
    assert_drawn(tmp_path / "out" / "photo_cam.png")


def test_places_in_the_picture_and_in_the_file():
    # the middle of a file of 300 x 200 pixels, 4 times smaller: columns 100 to 196 from 50 cut away on either side
    columns, rows = np.arange(50, 250, 4) + 1.5, np.arange(0, 200, 4) + 1.5
    subject = Subject(None, "classification", [], None, None, columns, rows, (300, 200))
    assert subject.place(50, 0) == (0, 0)
    assert subject.place(249, 199) == (49, 49)
    assert subject.place_in_file(0.5, 49.5) == (51.5, 197.5)
    assert subject.place_in_file(25, 1) == (149.5, 3.5)
    for x, y in ((49, 3), (250, 3)):
        with pytest.raises(InputError, match=f"x from 50 to 249 and y from 0 to 199: .*; got {x},{y}"):
            subject.place(x, y)
