"""`pretrained=True`: the authors' files from a Drive on loopback, checked, converted and kept; or one clear line."""

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

from softmaxfree import ops
from softmaxfree.errors import InputError
from softmaxfree.models import downloads
from softmaxfree.models.conversion import convert
from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER
from softmaxfree_cli import main
from tests import golden_files
from tests.models import drive

PUBLISHED = ["soft_tiny", "soft_norm_tiny", "soft_norm_small", "soft_norm_medium", "soft_norm_large"]
SHAPES = golden_files.released_shapes()


def url_of(name):
    return timm.get_pretrained_cfg(name).url


def id_of(name):
    return url_of(name).partition("id=")[2]


def file_of(name, **change):
    """The authors' file with random weights, and the weights."""
    stream = io.BytesIO()
    weights = golden_files.release(stream, name, **change)
    return stream.getvalue(), weights


def shallow_small():
    """A file of SOFT++-Small with the depths of the paper."""
    with torch.device("meta"):
        deep = set(SHAPES["soft_norm_small"])
    kept = {
        k: s
        for k, s in SHAPES["soft_norm_small"].items()
        if not (k.startswith("block3.") and int(k.split(".")[1]) >= 7)
    }
    assert len(kept) < len(deep)
    stream = io.BytesIO()
    torch.save({"state_dict": {k: torch.rand(s) * 0.05 for k, s in kept.items()}}, stream)
    return stream.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """timm's cache, empty; and a home folder for the processes that a test starts."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "torch" / "hub" / "checkpoints" / "softmaxfree"


@pytest.fixture
def server(cache, monkeypatch):
    """A Drive with SOFT-Tiny."""
    with drive.serve() as running:
        monkeypatch.setattr(drive.HTTPAdapter, "send", drive.led_to(running.server_port))
        monkeypatch.setattr(downloads, "_RETRIES", 0)
        running.content[id_of("soft_tiny")] = file_of("soft_tiny")[0]
        yield running


def left(cache):
    """What is in the cache, apart from locks, which are empty files."""
    paths = [path for path in cache.rglob("*") if not (path.suffix == ".lock" and path.stat().st_size == 0)]
    return sorted(str(path.relative_to(cache)) for path in paths)


def refusal(name, **arguments):
    with pytest.raises(InputError) as caught:
        timm.create_model(name, pretrained=True, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_file_is_fetched_checked_converted_and_kept(name, server, cache, monkeypatch):
    data, weights = file_of(name)
    server.content[id_of(name)] = data
    server.behave = drive.direct if name == "soft_tiny" else drive.confirmed
    model = timm.create_model(name, pretrained=True).eval()

    for parameter in ("head.weight", "patch_embed1.proj.0.weight", "block3.1.att.ff1.weight"):
        ours = model.get_parameter(
            parameter.replace("patch_embed1.proj.0", "stages.0.embed.0.conv").replace(
                "block3.1.att.ff1", "stages.2.blocks.1.mlp.fc1"
            )
        )
        assert torch.equal(ours, weights[parameter])
    assert sum(p.numel() for p in model.parameters()) == sum(
        value.numel() for key, value in weights.items() if not key.endswith(("running_mean", "running_var", "tracked"))
    )
    assert model.solver == (RELEASED_NORMALIZED_SOLVER if "norm" in name else ops.Newton())

    assert left(cache) == [f"{name}.json", f"{name}.safetensors"]
    notes = json.loads((cache / f"{name}.json").read_text())
    assert notes == {"url": url_of(name), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with safe_open(cache / f"{name}.safetensors", "pt") as file:
        assert file.metadata()["architecture"] == name

    # from here on neither network nor gdown
    asked = len(server.asked)
    monkeypatch.setitem(sys.modules, "gdown", None)
    again = timm.create_model(name, pretrained=True).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert len(server.asked) == asked


def test_the_model_is_the_one_that_the_file_alone_makes(server, cache, tmp_path):
    (tmp_path / "SOFT_Tiny.pth").write_bytes(server.content[id_of("soft_tiny")])
    by_hand = timm.create_model("soft_tiny", checkpoint_path=str(tmp_path / "SOFT_Tiny.pth")).eval()
    model = timm.create_model("soft_tiny.fudan_in1k", pretrained=True).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), by_hand(x))
    assert model._model_args == by_hand._model_args


def test_what_timm_does_with_pretrained_weights_it_does_with_these(server, cache):
    weights = file_of("soft_tiny")[1]
    conv = weights["patch_embed1.proj.0.weight"]

    grey = timm.create_model("soft_tiny", pretrained=True, num_classes=5, in_chans=1)
    assert grey.head.weight.shape == (5, 512)
    torch.testing.assert_close(grey.stages[0].embed[0].conv.weight, conv.sum(1, keepdim=True))

    headless = timm.create_model("soft_tiny", pretrained=True, num_classes=0).eval()
    x = torch.rand(1, 3, 64, 64)
    assert headless(x).shape == (1, 512)

    features = timm.create_model("soft_tiny", pretrained=True, features_only=True, out_indices=(1, 2)).eval()
    whole = timm.create_model("soft_tiny", pretrained=True).eval()
    with torch.no_grad():
        maps = whole.forward_intermediates(x, [1, 2], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(features(x), maps, strict=True))

    with pytest.warns(UserWarning, match="position tables are resampled"):
        small = timm.create_model("soft_tiny", pretrained=True, img_size=64).eval()
    assert small.stages[0].pos_embed.table.shape[1] == 16 * 16
    with torch.no_grad():
        torch.testing.assert_close(small(x), whole(x), rtol=1e-4, atol=1e-5)

    with pytest.warns(UserWarning, match="position tables are resampled"):
        dilated = timm.create_model("soft_tiny", pretrained=True, features_only=True, output_stride=16)
    assert dilated.feature_info.reduction() == [4, 8, 16, 16]

    named = timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay={"crop_pct": 1.0})
    assert named.pretrained_cfg["crop_pct"] == 1.0
    assert len(server.asked) == 1


def test_the_path_of_the_cache_does_not_travel_with_the_model(server, cache, tmp_path):
    model = timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay={"crop_pct": 1.0})
    features = timm.create_model("soft_tiny", pretrained=True, features_only=True)
    for config in (model.pretrained_cfg, model.default_cfg, features.pretrained_cfg, features.model.pretrained_cfg):
        assert "file" not in config
        assert config["url"] == url_of("soft_tiny")
    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    assert str(cache) not in (tmp_path / "saved" / "config.json").read_text()
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    assert torch.equal(again.head.weight, model.head.weight)
    assert len(server.asked) == 1


@pytest.mark.parametrize("depths", [(1, 3, 20, 4), (1, 3, 7, 4)])
def test_small_has_the_depths_of_the_file(depths, server, cache, tmp_path):
    data = file_of("soft_norm_small")[0] if depths[2] == 20 else shallow_small()
    server.content[id_of("soft_norm_small")] = data
    model = timm.create_model("soft_norm_small", pretrained=True, num_classes=3).eval()
    assert tuple(len(stage.blocks) for stage in model.stages) == depths
    assert model.solver == RELEASED_NORMALIZED_SOLVER
    assert timm.create_model("soft_norm_small", pretrained=True, depths=list(depths)).depths == depths
    features = timm.create_model("soft_norm_small", pretrained=True, features_only=True)
    assert features.model.depths == depths

    other = (1, 3, 27 - depths[2], 4)
    message = refusal("soft_norm_small", depths=other, num_classes=3)
    assert f"depths={other} contradicts the weights of soft_norm_small, which have {depths}" in message

    # where the model is saved, its depths are too
    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert timm.create_model("soft_norm_small").depths == (1, 3, 7, 4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", None])
def test_depths_are_those_of_a_given_source_too(suffix, cache, tmp_path):
    """Where the head is another, timm would leave out what does not fit, and say nothing."""
    weights = golden_files.released_weights("soft_norm_small")
    file = tmp_path / f"SOFT_Small_norm{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": weights}, file)
    elif suffix:
        convert(weights, "soft_norm_small", {"depths": (1, 3, 20, 4)}, file)
    start = {"file": str(file)} if suffix else {"state_dict": weights}
    model = timm.create_model("soft_norm_small", pretrained=True, pretrained_cfg_overlay=start, num_classes=3)
    assert torch.equal(model.stages[2].blocks[19].attn.q.weight, weights["block3.19.att.mha.W_q.weight"])
    assert "contradicts" in refusal("soft_norm_small", pretrained_cfg_overlay=start, depths=(1, 3, 7, 4), num_classes=3)


def test_depths_that_contradict_any_file_are_refused(server, cache):
    assert "depths=(1, 2, 4, 2) contradicts" in refusal("soft_tiny", depths=(1, 2, 4, 2), num_classes=3)


class Code:
    def __reduce__(self):
        return print, ("ran",)


def broken(name):
    """Files that are not what they should be."""
    stream = io.BytesIO()
    weights = file_of("soft_tiny")[1]
    if name == "code":
        torch.save({"state_dict": weights, "x": Code()}, stream)
    elif name == "missing":
        del weights["block3.0.att.norm2.weight"]
        torch.save({"state_dict": weights}, stream)
    elif name == "half of a pair":
        del weights["block4.1.attn.kv.bias"]
        torch.save({"state_dict": weights}, stream)
    elif name == "left over":
        torch.save({"state_dict": weights | {"block3.9.att.norm1.weight": torch.zeros(320)}}, stream)
    elif name == "no tensor":
        torch.save({"state_dict": weights | {"head.bias": "none"}}, stream)
    elif name == "another":
        torch.save({"state_dict": timm.create_model("resnet10t").state_dict()}, stream)
    elif name == "noise":
        stream.write(bytes(range(256)) * 100)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("code", "would have to run to read it"),
        ("missing", "1 weights missing ['stages.2.blocks.0.norm2.weight']"),
        ("half of a pair", "'block4.1.attn.kv.bias' is missing"),
        ("left over", "the checkpoint is of another model: it has embed_dims"),
        ("no tensor", "has no weights under the authors' names"),
        ("another", "has no weights under the authors' names"),
        ("noise", "the downloaded file is refused"),
        ("empty", "the downloaded file cannot be read as weights"),
    ],
)
def test_a_file_that_is_not_the_authors_is_refused_and_leaves_nothing(content, why, server, cache, capsys):
    server.content[id_of("soft_tiny")] = broken(content)
    server.behave = lambda handler, file, data: handler.file(data)
    assert why in refusal("soft_tiny", num_classes=3)
    assert left(cache) == []
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("head.weight", (7, 512)),
        ("patch_embed1.proj.0.weight", (32, 1, 3, 3)),
        ("pos_embed1", (1, 96 * 96, 64)),
        ("pos_embed2", (1, 14 * 14, 128)),
        ("block3.0.att.ff1.weight", (1280, 321)),
    ],
)
def test_every_shape_counts(key, shape, server, cache):
    server.content[id_of("soft_tiny")] = file_of("soft_tiny", **{key: torch.zeros(shape)})[0]
    refusal("soft_tiny", num_classes=3)
    assert left(cache) == []


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (drive.quota, "Too many users have viewed or downloaded this file recently"),
        (drive.missing, "Cannot retrieve the public link of the file"),
        (drive.cut, "Download is incomplete: received"),
        (drive.cut_unnoticed, "the downloaded file cannot be read as weights"),
        (drive.page_as_file, "Google Drive sent a page in place of the file"),
        (drive.endless, "Google Drive sent no file within 1 s"),
        (drive.silent, "timed out"),
        (drive.stalled, "timed out"),
    ],
)
def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(behave, why, server, cache, monkeypatch):
    monkeypatch.setattr(downloads, "_READ", 0.5)
    monkeypatch.setattr(downloads, "_PATIENCE", 1.0)
    if behave is drive.silent:
        monkeypatch.setattr(downloads, "_PATIENCE", 60.0)
    server.behave = behave
    message = refusal("soft_tiny")
    assert why in message
    for advice in (url_of("soft_tiny"), "`softmaxfree convert FILE", "checkpoint_path='FILE'"):
        assert advice in message
    assert left(cache) == []

    server.behave = drive.direct  # and the next time all is well
    timm.create_model("soft_tiny", pretrained=True)


def test_a_connection_that_breaks_is_made_again(server, cache, monkeypatch):
    monkeypatch.setattr(downloads, "_RETRIES", 1)

    def once(handler, file, data):
        (drive.stalled if len(server.asked) == 1 else resumed)(handler, file, data)

    def resumed(handler, file, data):
        start = int(handler.headers["Range"].removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Type": "application/octet-stream"}
        handler.send(data[start:], headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, 206)

    monkeypatch.setattr(downloads, "_READ", 0.5)
    server.behave = once
    model = timm.create_model("soft_tiny", pretrained=True)
    assert torch.equal(model.head.weight, file_of("soft_tiny")[1]["head.weight"])
    assert len(server.asked) == 2


def test_without_a_network_one_line_says_what_to_do(cache, monkeypatch, capsys, tmp_path):
    with drive.serve() as server:
        port = server.server_port
    monkeypatch.setattr(drive.HTTPAdapter, "send", drive.led_to(port))  # where nobody listens any more
    monkeypatch.setattr(downloads, "_RETRIES", 0)
    assert "the download failed (Failed to establish a new connection: " in refusal("soft_tiny")
    assert left(cache) == []

    (tmp_path / "a.png").write_bytes(b"")
    assert main(["predict", str(tmp_path / "a.png"), "--model", "soft_tiny"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert url_of("soft_tiny") in error


def test_what_the_line_says_works(cache, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gdown", None)
    message = refusal("soft_norm_small")
    assert "pip install 'softmaxfree[weights]'" in message
    command = message.partition("`softmaxfree ")[2].partition("`")[0].split()
    golden_files.release(tmp_path / "download", "soft_norm_small")
    (tmp_path / "download").rename(tmp_path / "SOFT_Small_norm.pth")
    assert main([str(tmp_path / "SOFT_Small_norm.pth") if word == "FILE" else word for word in command]) == 0
    model = timm.create_model("soft_norm_small", pretrained=True, num_classes=2)
    assert model.depths == (1, 3, 20, 4)
    assert model.solver == RELEASED_NORMALIZED_SOLVER


def test_a_gdown_without_timeouts_is_refused(server, cache, monkeypatch):
    import gdown

    monkeypatch.delattr(gdown, "DownloadCancelled")
    assert "needs gdown 6.4 or newer" in refusal("soft_tiny")


@pytest.mark.parametrize("name", ["soft_nano", "soft_small", "soft_huge", "soft_norm_huge"])
def test_a_model_without_published_weights_says_so(name, cache):
    message = refusal(name)
    assert f"the authors published no weights of {name}, only of {', '.join(PUBLISHED)}" in message
    assert "checkpoint_path='FILE'" in message


def test_another_source_of_weights_is_taken_as_timm_takes_it(server, cache, tmp_path):
    golden_files.release(tmp_path / "a.pth", "soft_tiny")
    overlay = {"file": str(tmp_path / "a.pth")}
    model = timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
    weights = {"state_dict": model.state_dict()}
    timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay=weights)
    timm.create_model("soft_tiny")
    assert server.asked == []
    assert not cache.exists()


def test_the_cache_may_be_elsewhere(server, cache, tmp_path):
    timm.create_model("soft_tiny", pretrained=True, cache_dir=tmp_path / "mine, here")
    assert not cache.exists()
    assert left(tmp_path / "mine, here" / "softmaxfree") == ["soft_tiny.json", "soft_tiny.safetensors"]


def test_a_cache_that_cannot_be_written_is_one_line(server, cache, tmp_path):
    (tmp_path / "torch").write_text("a file")
    assert f"cannot be kept in {cache} (Not a directory): set TORCH_HOME" in refusal("soft_tiny")


@pytest.mark.parametrize("damage", ["cut", "another model", "no weights"])
def test_a_damaged_file_of_the_cache_is_named(damage, server, cache):
    timm.create_model("soft_tiny", pretrained=True)
    file = cache / "soft_tiny.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100_000])
    elif damage == "no weights":
        file.write_bytes(b"")
    else:
        file.rename(cache / "soft_norm_tiny.safetensors")
        file = cache / "soft_norm_tiny.safetensors"
    message = refusal(file.stem)
    assert str(file) in message
    assert "delete it" in message


def test_processes_fetch_once(server, cache):
    server.behave = drive.slow
    code = (
        "import sys, timm, softmaxfree; from tests.models import drive;"
        "drive.HTTPAdapter.send = drive.led_to(int(sys.argv[1]));"
        "print(float(timm.create_model('soft_tiny', pretrained=True).head.bias.detach().sum()))"
    )
    command = [sys.executable, "-c", code, str(server.server_port)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=300)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(said) == 1
    assert float(said.pop()) == float(file_of("soft_tiny")[1]["head.bias"].sum())
    assert len(server.asked) == 1
    assert left(cache) == ["soft_tiny.json", "soft_tiny.safetensors"]
    assert not list(Path(os.environ["HOME"]).rglob("*gdown*"))  # its cookies


def test_what_a_killed_process_left_goes_with_the_next(server, cache, monkeypatch):
    monkeypatch.setattr(downloads.platform, "node", lambda: "here")
    for machine in ("here", "there"):
        (cache / f".soft_tiny.{machine}").mkdir(parents=True)
        (cache / f".soft_tiny.{machine}" / "download.pth").write_bytes(b"half")
    timm.create_model("soft_tiny", pretrained=True)
    assert [path for path in left(cache) if "/" not in path] == [
        ".soft_tiny.there",
        "soft_tiny.json",
        "soft_tiny.safetensors",
    ]


def test_the_download_is_logged(server, cache, caplog):
    with caplog.at_level(logging.INFO, logger="softmaxfree"):
        timm.create_model("soft_tiny", pretrained=True)
        timm.create_model("soft_tiny", pretrained=True)
    said = [record.message for record in caplog.records if record.name.startswith("softmaxfree")]
    assert said == [f"Downloading the weights of soft_tiny from {url_of('soft_tiny')}"]
