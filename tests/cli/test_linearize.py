"""`softmaxfree linearize`: what it prints and leaves, and what it refuses in one line."""

import timm
import torch
from PIL import Image

from softmaxfree.cli.checkpoint import load_classifier
from softmaxfree.tasks.pretrained import save_pretrained
from softmaxfree_cli import main

FEW = ["--steps", "2", "--block-steps", "2", "--batch-size", "2", "--measured", "2", "--size", "32"]
ARGUMENTS = '{"landmark_grid": [2, 2], "exact_keys": 2, "maps": true}'


def written(folder):
    """A folder of a tiny teacher, and one of pictures."""
    torch.manual_seed(0)
    arguments = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 2}
    teacher = timm.create_model("vit_tiny_patch16_224", **arguments)
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_pretrained(teacher, folder / "teacher", config, ("dark", "light"))
    for name, shade in (("dark", 40), ("light", 200)):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (40, 33), (shade, shade + 4 * i, 90)).save(folder / "data" / name / f"{i}.png")
    return str(folder / "teacher"), str(folder / "data")


def test_a_student_of_a_folder(tmp_path, capsys):
    teacher, data = written(tmp_path)
    out = tmp_path / "student"
    command = ["linearize", teacher, "--data", data, "--mixer-args", ARGUMENTS, "--out", str(out), *FEW]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split()[0] for line in lines]
    assert heads[:5] == ["swap", "block", "block", "blocks", "features"]
    assert heads[-1] == "report"
    assert any(line.startswith("speed      32 pixels: ") for line in lines)
    assert any("probe" in line and "agree" in line for line in lines)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("after the swap", "Maps at 32 pixels", "Time and memory"))
    own = load_classifier(str(out), None)
    assert own.data_config["mean"] == (0.5,) * 3
    assert own.model(torch.rand(1, 3, 32, 32)).shape == (1, 2)


def test_what_is_wrong_is_told_in_one_line(tmp_path, capsys):
    teacher, data = written(tmp_path)
    out = str(tmp_path / "out")
    for given, message in (
        (["swin_tiny_patch4_window7_224", "--weights", str(tmp_path / "none.pth")], "there is no such checkpoint"),
        (["soft_tiny"], "MODEL must be a transformer with softmax attention, soft_tiny is linear already"),
        (["nobody"], "MODEL must be a name of timm, a folder of a model, or teacher, got 'nobody'"),
        ([teacher, "--weights", "w.pth"], f"--weights is for a name of timm: {teacher} has weights of its own"),
        ([teacher, "--mixer", "soft"], "mixer: soft has projections of its own"),
        ([teacher, "--mixer-args", "{"], "--mixer-args must be JSON"),
        ([teacher, "--blocks", "7"], "blocks must be different numbers from 0 to 1"),
        ([teacher, "--batch-size", "50"], "a batch of 50"),
        ([teacher, "--size", "33"], "size must be a multiple of 8 for this model, got 33"),
    ):
        name, *options = given
        few = [] if options[:1] in (["--batch-size"], ["--size"]) else ["--batch-size", "2"]
        size = [] if options[:1] == ["--size"] else ["--size", "32"]
        assert main(["linearize", name, "--data", data, "--out", out, *few, *size, *options]) == 2, given
        assert message in capsys.readouterr().err, given
    assert not (tmp_path / "out").exists()
    bare = timm.create_model("vit_tiny_patch16_224", embed_dim=16, depth=1, num_heads=2, img_size=32, num_classes=0)
    save_pretrained(bare, tmp_path / "bare", {"input_size": (3, 32, 32)}, ())
    assert main(["predict", data, "--checkpoint", str(tmp_path / "bare")]) == 2
    assert "bare has no head, and so tells no classes" in capsys.readouterr().err
