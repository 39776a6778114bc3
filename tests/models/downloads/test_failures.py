"""Downloads that fail: one line says what to do, and it works."""

import sys

import pytest
import timm
import torch

from softmaxfree.models import downloads
from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER
from softmaxfree_cli import main
from tests import golden_files
from tests.models.downloads import drive
from tests.models.downloads.authors import file_of, left, refusal, url_of


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
