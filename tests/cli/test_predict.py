"""Images in, classes out: from every kind of checkpoint, to every format."""

import csv
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from softmaxfree.cli.checkpoint import load_classifier
from softmaxfree.cli.predict import _agreed
from softmaxfree.errors import InputError
from softmaxfree_cli import main

NAMES = ["ant", "bee", "cat", "dog"]
MODEL = {"num_classes": 4, "in_chans": 1, "img_size": 32}
DATA = {
    "input_size": (1, 32, 32),
    "mean": (0.2,),
    "std": (0.4,),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = timm.create_model("soft_nano", **MODEL, pretrained_cfg_overlay={**DATA, "label_names": NAMES}).eval()
    torch.nn.init.normal_(model.head.weight)  # so that classes differ
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A folder of timm's."""
    folder = tmp_path_factory.mktemp("saved")
    timm.models.save_for_hf(model, str(folder), model_config={"label_names": NAMES}, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images of several sizes, modes and formats, in a folder and one below it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    random = np.random.default_rng(0)
    for i, name in enumerate(["a.png", "b.JPG", "c.bmp", "below/d.png", "below/e.png", "below/f.webp"]):
        pixels = random.integers(0, 255, (32 + 8 * i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i % 2 else "RGB").save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def expected(model, path):
    """Probabilities by hand: shorter side to 32, centre, (x - 0.2) / 0.4."""
    image = Image.open(path).convert("L")
    scale = 32 / min(image.size)
    image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    x0, y0 = (round((side - 32) / 2) for side in image.size)
    pixels = np.asarray(image.crop((x0, y0, x0 + 32, y0 + 32)), dtype=np.float32) / 255
    with torch.no_grad():
        return model(torch.from_numpy((pixels - 0.2) / 0.4)[None, None]).softmax(-1)[0]


def predict(capsys, *argv):
    """Runs the command and reads the JSON that it prints."""
    assert main(["predict", *map(str, argv), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *argv):
    assert main(["predict", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_probabilities_are_the_models(model, saved, images, capsys):
    results = predict(capsys, images, "--checkpoint", saved, "--batch-size", 4, "--topk", 5)
    assert [r["file"] for r in results] == [str(p) for p in sorted(images.rglob("*.*")) if p.suffix != ".txt"]
    for result in results:
        p = expected(model, result["file"])
        assert [c["index"] for c in result["predictions"]] == p.argsort(descending=True).tolist()
        assert [c["class"] for c in result["predictions"]] == [NAMES[i] for i in p.argsort(descending=True)]
        found = torch.tensor([c["probability"] for c in result["predictions"]])
        torch.testing.assert_close(found, p.sort(descending=True).values, rtol=1e-4, atol=1e-5)


def test_every_kind_of_checkpoint_gives_the_same(model, saved, images, tmp_path, capsys):
    safetensors.torch.save_file(model.state_dict(), tmp_path / "plain.safetensors")
    torch.save({"state_dict_ema": model.state_dict()}, tmp_path / "plain.pth")
    assert main(["convert", str(tmp_path / "plain.pth"), str(tmp_path / "a.safetensors"), "--model", "soft_nano"]) == 0
    capsys.readouterr()
    ours = load_classifier(str(saved), None)
    for path, name in (
        ("plain.safetensors", "soft_nano"),
        ("plain.pth", "soft_nano"),
        ("a.safetensors", None),
    ):
        other = load_classifier(str(tmp_path / path), name)
        x = torch.rand(2, 1, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(other.model(x), ours.model(x), rtol=1e-5, atol=1e-5)
        assert other.class_names == ["0", "1", "2", "3"]  # these files have no names
    assert ours.class_names == NAMES


def test_a_checkpoint_of_the_trainer_needs_nothing_else(model, saved, images, tmp_path, capsys):
    lightning = pytest.importorskip("lightning.pytorch")
    from softmaxfree.tasks import ClassificationTask

    class Data(lightning.LightningDataModule):
        data_config, class_names = DATA, tuple(NAMES)

    args = {key: value for key, value in MODEL.items() if key != "num_classes"}
    task = ClassificationTask("soft_nano", num_classes=4, model_args=args)
    task.model.load_state_dict(model.state_dict())
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(task)
    task.trainer, trainer.datamodule = trainer, Data()
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    found = predict(capsys, images, "--checkpoint", tmp_path / "best.ckpt")
    assert found == predict(capsys, images, "--checkpoint", saved)


def test_the_table_has_a_line_an_image(saved, images, capsys):
    assert main(["predict", str(images), "--checkpoint", str(saved), "--topk", "2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "top-1", "top-2"]
    assert len(lines) == 6
    assert all(line.count("%") == 2 for line in lines)


def test_half_of_few_classes_is_told(saved, images, capsys):
    assert main(["predict", str(images), "--checkpoint", str(saved)]) == 0
    assert capsys.readouterr().out.split()[:3] == ["file", "top-1", "top-2"]  # of 4 classes


def test_csv_goes_to_a_file_and_leaves_nothing_else(saved, images, tmp_path, capsys):
    out = tmp_path / "new" / "classes.csv"
    argv = [
        str(images / "a.png"),
        "--checkpoint",
        str(saved),
        "--topk",
        "9",
        "--format",
        "csv",
        "--out",
        str(out),
    ]
    assert main(["predict", *argv]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err.splitlines()[-1].endswith(f"into {out}")) == ("", True)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]  # 9 is more than there are
    assert {row["file"] for row in rows} == {str(images / "a.png")}
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)
    assert [path.name for path in out.parent.iterdir()] == ["classes.csv"]


def test_the_ending_of_a_file_tells_its_format(saved, images, tmp_path, capsys):
    argv = ["predict", str(images / "a.png"), "--checkpoint", str(saved)]
    for name, start in (("a.csv", "file,rank,"), ("a.JSON", "[\n"), ("a.txt", "file  "), ("a", "file  ")):
        assert main([*argv, "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(start)
    assert main([*argv, "--format", "json", "--out", str(tmp_path / "b.csv")]) == 0  # what is given wins
    assert (tmp_path / "b.csv").read_text().startswith("[\n")


def test_class_names_come_from_a_file(saved, images, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("Ameise\nBiene\nKätzchen\nHund\n", encoding="utf-8")
    argv = [images / "a.png", "--checkpoint", saved, "--class-names", tmp_path / "names.txt"]
    given, own = predict(capsys, *argv), predict(capsys, *argv[:3])
    german = dict(zip(NAMES, ["Ameise", "Biene", "Kätzchen", "Hund"], strict=True))
    assert [p["class"] for p in given[0]["predictions"]] == [german[p["class"]] for p in own[0]["predictions"]]

    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert "names.txt has 2 lines, but the model has 4 classes" in refused(capsys, *argv)


def test_a_table_replaces_its_like_and_nothing_else(saved, images, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(images, photos)
    shutil.copytree(saved, tmp_path / "saved")
    names, foreign = tmp_path / "names.txt", tmp_path / "foreign.txt"
    names.write_text("\n".join(NAMES))
    foreign.write_text("mine")
    argv = [photos, "--checkpoint", tmp_path / "saved", "--class-names", names]
    for out, message in (
        (photos / "a.png", "would replace"),
        (tmp_path / "saved" / "model.safetensors", "would replace"),
        (names, "would replace"),
        (foreign, "is no earlier output"),
        (tmp_path, "is a folder"),
    ):
        before = None if out.is_dir() else out.read_bytes()
        assert message in refused(capsys, *argv, "--out", out)
        assert before is None or out.read_bytes() == before
    for format in ("table", "json", "csv", "table"):
        assert main(["predict", *map(str, argv), "--format", format, "--out", str(tmp_path / "out")]) == 0


def test_a_table_goes_to_a_device(saved, images, capfd):
    argv = ["predict", str(images / "a.png"), "--checkpoint", str(saved), "--format", "csv", "--out"]
    assert main([*argv, "/dev/null"]) == 0
    assert capfd.readouterr().out == ""


@pytest.fixture
def broken(images, tmp_path):
    """A folder with one good image and two broken ones."""
    whole = (images / "a.png").read_bytes()
    (tmp_path / "whole.png").write_bytes(whole)
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    return tmp_path


def test_unreadable_images_are_named_counted_and_skipped(broken, saved, capsys):
    assert main(["predict", str(broken), "--checkpoint", str(saved), "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert [result["file"] for result in json.loads(captured.out)] == [str(broken / "whole.png")]
    assert f"skipped: {broken / 'half.png'}" in captured.err
    assert f"skipped: {broken / 'text.jpg'}" in captured.err
    assert "2 of 3 images skipped" in captured.err


def test_an_unreadable_image_ends_it_on_request(broken, saved, tmp_path, capsys):
    out = tmp_path / "out" / "a.json"
    error = refused(capsys, broken, "--checkpoint", saved, "--on-error", "fail", "--format", "json", "--out", out)
    assert f"unreadable image: {broken / 'half.png'}" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_no_readable_image_at_all_is_an_error(broken, saved, capsys):
    (broken / "whole.png").unlink()
    assert "none of the 2 images can be read" in refused(capsys, broken, "--checkpoint", saved)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{images}/a.png"], "give --checkpoint PATH, or --model NAME"),
        (["{images}/z.png", "--checkpoint", "{saved}"], "there is no file or folder {images}/z.png"),
        (["{empty}", "--checkpoint", "{saved}"], "no images in {empty}"),
        (["{images}", "--checkpoint", "{empty}"], "{empty} has no config.json"),
        (["{images}", "--checkpoint", "{empty}/no.ckpt"], "{empty}/no.ckpt: there is no such checkpoint"),
        (["{images}", "--checkpoint", "{saved}", "--topk", "0"], "--topk must be 1 or more, got 0"),
        (["{images}", "--checkpoint", "{saved}", "--batch-size", "-1"], "--batch-size must be 1 or more"),
        (["{images}", "--checkpoint", "{saved}", "--device", "warp"], "--device warp cannot be used here"),
        (["{images}", "--checkpoint", "{saved}", "--class-names", "no.txt"], "no.txt: No such file"),
        (["{images}", "--model", "soft_nan"], "no model matches 'soft_nan'; there are soft_nano"),
        (["{images}", "--model", "soft_huge"], "the authors published no weights of soft_huge"),
        (["{images}", "--model", "soft_huge"], "give a file of weights: --checkpoint FILE"),
        (["{images}", "--checkpoint", "{plain}"], "does not name its model: give --model"),
        (
            ["{images}", "--checkpoint", "{plain}", "--model", "soft_tiny"],
            "does not fit soft_tiny: the checkpoint is of",
        ),
        (
            ["{images}", "--checkpoint", "{saved}", "--model", "soft_tiny"],
            "--model is soft_tiny, but {saved} is of soft_nano",
        ),
        (["{images}", "--checkpoint", "{saved}", "--size", "12"], "--size must be 13 or more for this model, got 12"),
    ],
)
def test_bad_input_is_one_line(argv, message, saved, images, tmp_path, capsys):
    places = {"saved": saved, "images": images, "empty": tmp_path, "plain": tmp_path / "plain.safetensors"}
    if "{plain}" in argv:
        places["plain"].write_bytes((saved / "model.safetensors").read_bytes())
    error = refused(capsys, *(arg.format(**places) for arg in argv))
    assert message.format(**places) in error
    assert error.count("\n") == 1


def test_a_model_that_contradicts_the_checkpoint_is_refused(model, images, tmp_path, capsys):
    metadata = {"architecture": "soft_nano", "model_args": json.dumps(MODEL)}
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors", metadata)
    argv = [images, "--checkpoint", tmp_path / "a.safetensors", "--model", "soft_tiny"]
    assert "--model is soft_tiny, but" in refused(capsys, *argv)


def test_the_usual_threshold_is_no_option_of_a_classifier_either():
    given = {"threshold": 0.5, "overlap": None, "window": None}
    with pytest.raises(InputError, match=r"--threshold is for detection, but a.ckpt is of classification"):
        _agreed(None, "classification", "a.ckpt", given)
    assert _agreed(None, "classification", "a.ckpt", {**given, "threshold": None}) == "classification"
