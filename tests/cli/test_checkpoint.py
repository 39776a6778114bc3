"""Run folders, other folders and other files given as a checkpoint; devices that are there and that are not."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from softmaxfree.cli.checkpoint import find_checkpoint, find_kind, load_classifier
from softmaxfree.cli.device import find_device
from softmaxfree.errors import InputError
from softmaxfree.weights import read_notes


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def saved(tmp_path):
    """A folder of timm's."""
    model = timm.create_model("soft_nano", num_classes=3, embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1))
    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    return tmp_path / "saved"


def test_a_run_stands_for_its_best_checkpoint_or_its_last(tmp_path, capsys):
    run = make(tmp_path / "runs" / "0", "config.yaml", "best.ckpt", "last.ckpt", "best/config.json")
    assert find_checkpoint(run) == str(run / "best.ckpt")
    assert find_checkpoint(run / "last.ckpt") == str(run / "last.ckpt")
    assert find_checkpoint(run / "best") == str(run / "best")
    assert capsys.readouterr().err == ""
    (run / "best.ckpt").unlink()
    assert find_checkpoint(run) == str(run / "last.ckpt")
    assert capsys.readouterr().err == f"{run} has no best.ckpt: its last.ckpt is used\n"


def test_a_sharded_checkpoint_is_a_folder(tmp_path):
    run = make(tmp_path, "config.yaml", "best.ckpt/meta.pt")
    assert find_checkpoint(run) == find_checkpoint(run / "best.ckpt") == str(run / "best.ckpt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.yaml"], "the run {} has no checkpoint yet, neither best.ckpt nor last.ckpt"),
        (["photo.jpg"], "{} has no config.json, best.ckpt or last.ckpt"),
        (
            ["2/last.ckpt", "10/best.ckpt", "11/config.yaml"],
            "{} holds runs and is none: name one of them, such as {}/10",
        ),
    ],
)
def test_a_folder_without_a_checkpoint_is_told(files, message, tmp_path):
    folder = make(tmp_path / "given", *files)
    with pytest.raises(FileNotFoundError) as error:
        find_checkpoint(folder)
    assert message.format(folder, folder) in str(error.value)


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth", "a.txt", "config.yaml", "a.json"])
@pytest.mark.parametrize("text", ["hello", '{"a": 1}', "é" * 600, "epoch,loss\n1,2\n"])
def test_a_text_is_no_checkpoint(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="is a text, no file of weights; allowed are"):
        load_classifier(str(tmp_path / name), None)
    if name.endswith(".ckpt"):
        with pytest.raises(InputError, match="is a text, no file of weights; allowed are"):
            find_kind(str(tmp_path / name))


def test_a_checkpoint_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"model.a": torch.zeros(5000)}}, path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"last.ckpt cannot be read as weights; it may be cut off \("):
        read_notes(path)


def test_the_checkpoint_tells_its_task(tmp_path):
    for task in ("Classification", "Detection", "Segmentation"):
        torch.save({"task": f"{task}Task"}, tmp_path / "a.ckpt")
        assert find_kind(str(tmp_path / "a.ckpt")) == task.lower()
    torch.save({"task": "PoseTask"}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="is of PoseTask; allowed are those of classification, "):
        find_kind(str(tmp_path / "a.ckpt"))
    assert find_kind(None) == "classification"


def test_a_device_that_is_not_there_is_told_with_those_that_are(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert find_device() == torch.device("cpu")
    with pytest.raises(InputError, match=r"--device cuda cannot be used here; choose from auto, cpu$"):
        find_device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert find_device().type == "cuda"
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"--device cuda:2 cannot .* auto, cpu, cuda, cuda:0, cuda:1$"):
        find_device("cuda:2")


def test_a_picture_is_no_checkpoint(tmp_path):
    Image.effect_noise((32, 32), 50).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a.jpg is no file of weights; allowed are"):
        load_classifier(str(tmp_path / "a.jpg"), None)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b'{"archi', "config.json must be a JSON object: JSONDecodeError"),
        ("config.json", b"{}", "config.json must have the key architecture, .* got None"),
        ("config.json", b"[1]", "config.json must be a JSON object: TypeError"),
        ("config.json", b"\xff", "config.json must be a JSON object: UnicodeDecodeError"),
        ("config.json", b'{"architecture": "resnet18"}', "cannot be loaded as resnet18: "),
        ("config.json", b'{"architecture": "soft_nano", "model_args": {"foo": 1}}', "loaded as soft_nano: TypeError: "),
        ("config.json", b'{"architecture": "soft_nano", "pretrained_cfg": "x"}', "cannot be loaded as soft_nano: "),
        ("model.safetensors", b"", "cannot be loaded as soft_nano: SafetensorError: "),
        ("model.safetensors", None, "No suitable checkpoints found in .*saved"),
    ],
)
def test_a_broken_folder_of_timm_is_told_in_one_line(file, content, message, saved):
    if content is None:
        (saved / file).unlink()
    else:
        (saved / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_classifier(str(saved), None)


def test_weights_that_are_not_finite_are_refused(saved, tmp_path):
    file = saved / "model.safetensors"
    weights = load_file(file)
    name = next(name for name, weight in weights.items() if weight.ndim > 1 and weight.is_floating_point())
    for value in (float("nan"), float("inf")):
        weights[name].view(-1)[0] = value
        save_file(weights, file)
        torch.save(weights, tmp_path / "weights.pth")
        for checkpoint, model in ((saved, None), (tmp_path / "weights.pth", "soft_nano")):
            with pytest.raises(InputError, match=rf"{checkpoint} has values that are not finite in {name}: a training"):
                load_classifier(str(checkpoint), model)


def test_names_of_other_classes_than_the_model_has_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "label_names": ["a", "b"]}))
    with pytest.raises(InputError, match="has 2 label_names, but the model has 3 classes"):
        load_classifier(str(saved), None)


def test_weights_of_another_depth_are_counted(tmp_path):
    own = {"patch_size": 8, "embed_dim": 16, "num_heads": 2, "img_size": 32}
    weights = timm.create_model("vit_tiny_patch16_224", depth=2, **own).state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    with pytest.raises(
        InputError, match=r"vit.pth does not fit .*: \d+ weights are missing, .*, \d+ weights are of another"
    ):
        load_classifier(str(tmp_path / "vit.pth"), "vit_tiny_patch16_224")
