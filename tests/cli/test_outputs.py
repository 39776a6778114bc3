"""What `predict`, `convert` and `bench` write replaces nothing that they have not made."""

import json
import os
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from PIL import Image

from softmaxfree.cli.outputs import choose_folder, common_folder, name_outputs
from softmaxfree.cli.predict_dense import predict_dense
from softmaxfree.errors import InputError
from softmaxfree_cli import main

SEGMENTATION = [".png", "_classes.png", "_colours.png"]


def names(*images, root="photos", endings=SEGMENTATION):
    found = name_outputs([Path(root, image) for image in images], root, endings)
    return [[str(name) for name in outputs] for outputs in found.values()]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["1.jpg", "a/1.jpg"], ["1", "a/1"]),
        (["a.jpg", "a.png"], ["a", "a.png"]),
        (["a.jpg", "A.png"], ["a", "A.png"]),
        (["a.jpg", "a.png", "a.png.bmp"], ["a", "a.png", "a.png.bmp"]),
        (["a.jpg", "a_classes.jpg"], ["a", "a_classes.jpg"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg", "a.png/b"]),
        (["predictions.json.jpg", "Predictions.JSON/1.jpg"], ["predictions.json", "Predictions.JSON_/1"]),
        (["\u00e9.jpg", "e\u0301.jpg"], ["\u00e9", "e\u0301.jpg"]),
    ],
)
def test_no_two_outputs_have_one_name(images, expected):
    assert names(*images) == [[f"{stem}{ending}" for ending in SEGMENTATION] for stem in expected]


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_long_names_are_cut_and_stay_apart(letter):
    long = letter * (250 // len(letter.encode()))
    outputs = [name for pair in names(f"{long}.jpg", f"{long}.png", f"{long[:-1]}.png") for name in pair]
    assert len({name.casefold() for name in outputs}) == 9
    assert all(len(os.fsencode(name)) <= 255 for name in outputs)


def test_folders_are_mirrored_below_what_the_user_named(tmp_path):
    for folder in ("x/deep", "y"):
        (tmp_path / folder).mkdir(parents=True)
    assert common_folder([tmp_path / "x"]) == tmp_path / "x"
    assert common_folder([tmp_path / "x", tmp_path / "y"]) == tmp_path
    assert common_folder([tmp_path / "x" / "1.jpg", tmp_path / "y" / "1.jpg"]) == tmp_path


class Segmenter:
    """One class everywhere, without a network."""

    device = "cpu"
    hparams = MappingProxyType({"scales": None, "evaluation": "whole"})

    @property
    def model(self):
        return self

    def predict_classes(self, image, window=None, stride=None):
        return torch.ones(image.shape[1:], dtype=torch.uint8)


def predict(files, out, **more):
    """Runs a segmenter on images and folders of images."""
    loaded = SimpleNamespace(task=Segmenter(), kind="segmentation", size=(16, 64), class_names=["a", "b"])
    images = [i for f in files for i in ([f] if f.is_file() else sorted(p for p in f.rglob("*") if p.is_file()))]
    predict_dense(images, loaded, out, 0.5, "fail", [str(file) for file in files], **more)


def test_a_backbone_of_one_size_is_told(tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("Input height (16) doesn't match model (64).")

    monkeypatch.setattr(Segmenter, "predict_classes", refuse)
    with pytest.raises(
        InputError, match=r"a\.jpg: the backbone takes no 16x20 pixels: .* --window 16 gives it that of"
    ):
        predict([photo(tmp_path / "a.jpg")], tmp_path / "out")


def photo(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)
    return path


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_photographs_are_not_replaced_by_drawings(tmp_path):
    photo(tmp_path / "photos" / "a.png")
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"--out: .*a\.png would replace .*a\.png, which is read"):
        predict([tmp_path / "photos"], tmp_path / "photos")
    assert content(tmp_path) == before


def test_links_to_photographs_are_followed(tmp_path):
    target = photo(tmp_path / "photos" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(target)
    (tmp_path / "same").symlink_to(tmp_path / "photos")
    for out in ("out", "same"):
        with pytest.raises(InputError, match="would replace"):
            predict([tmp_path / "photos"], tmp_path / out)


def test_a_foreign_file_is_not_replaced(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photo(photos / "a.jpg")
    for name, text in (("predictions.json", '{"mine": 1}'), ("a_classes.png", "mine"), ("a.png", "mine")):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
        with pytest.raises(InputError, match=rf"{name} is there and is no earlier output"):
            predict([photos], out)
        assert (out / name).read_text() == text
        (out / name).unlink()
    (out / "a.png").mkdir()
    with pytest.raises(InputError, match=r"a\.png is a folder"):
        predict([photos], out)


def test_a_second_run_replaces_the_first_and_reads_none_of_it(tmp_path):
    photos = tmp_path / "photos"
    photo(photos / "a.jpg")
    photo(photos / "b" / "a.jpg", "blue")
    for _ in range(2):
        predict([photos], photos / "drawn")
        assert [p.relative_to(photos / "drawn").as_posix() for p in sorted((photos / "drawn").rglob("*.png"))] == [
            "a.png",
            "a_classes.png",
            "a_colours.png",
            "b/a.png",
            "b/a_classes.png",
            "b/a_colours.png",
        ]
    listed = json.loads((photos / "drawn" / "predictions.json").read_text())
    assert [(Path(r["file"]).name, r["picture"], r["classes"]) for r in listed] == [
        ("a.jpg", "a.png", "a_classes.png"),
        ("a.jpg", "b/a.png", "b/a_classes.png"),
    ]


def test_a_folder_holds_the_predictions_of_one_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = photo(tmp_path / "photos" / "a.jpg"), photo(tmp_path / "photos" / "b.jpg")
    for out in (None, "drawn"):
        assert choose_folder(out, "/one.ckpt", [first]) == Path(out or "predictions")
        predict([first], out or "predictions", checkpoint="/one.ckpt")
        assert choose_folder(out, "/one.ckpt", [first, second]) == Path(out or "predictions")  # more, and the same
    assert (
        choose_folder(None, "/two.ckpt", [first]) == choose_folder(None, "/one.ckpt", [second]) == Path("predictions-2")
    )
    with pytest.raises(InputError, match=r"--out: drawn holds predictions of /one.ckpt, which would stay"):
        choose_folder("drawn", "/two.ckpt", [first])
    with pytest.raises(InputError, match=r"--out: drawn holds predictions of other images, such as .*a.jpg, which"):
        choose_folder("drawn", "/one.ckpt", [second])


def test_an_image_named_twice_is_drawn_once(tmp_path):
    image = photo(tmp_path / "a.jpg")
    predict([image, tmp_path / "." / "a.jpg"], tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1


def test_a_name_of_any_bytes_is_listed(tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    photo(tmp_path / "photos" / name)
    predict([tmp_path / "photos"], tmp_path / "out")
    (result,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert Path(result["file"]).name == name


@pytest.mark.parametrize("target", ["source.safetensors", "link.safetensors", "mine.safetensors"])
def test_convert_replaces_neither_its_source_nor_a_foreign_file(target, tmp_path, capsys):
    from safetensors.torch import save_file

    for name in ("source", "mine"):
        save_file({"head.weight": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "link.safetensors").symlink_to("source.safetensors")
    before = content(tmp_path)
    assert main(["convert", str(tmp_path / "source.safetensors"), str(tmp_path / target)]) == 2
    assert f"TARGET: {tmp_path / target} " in capsys.readouterr().err
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["README.md", "results/attention-cpu.csv", "attention-cpu.png"])
def test_bench_replaces_no_foreign_file(name, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / name).write_text("mine\n")
    assert main(["bench", "attention", "--report", "--out", str(tmp_path)]) == 2
    assert f"{name} is there and is no earlier output" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine\n"
