"""Where the files are kept, and what may have happened to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from softmaxfree.models import downloads
from tests.models.downloads import drive
from tests.models.downloads.authors import file_of, left, refusal


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


@pytest.mark.slow
def test_processes_fetch_once(server, cache):
    server.behave = drive.slow
    code = (
        "import sys, timm, softmaxfree; from tests.models.downloads import drive;"
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
