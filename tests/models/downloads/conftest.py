"""timm's cache, empty, and a Drive on loopback."""

import pytest

from softmaxfree.models import downloads
from tests.models.downloads.authors import file_of, id_of


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """timm's cache, empty; and a home folder for the processes that a test starts."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "torch" / "hub" / "checkpoints" / "softmaxfree"


@pytest.fixture
def server(cache, monkeypatch):
    """A Drive with SOFT-Tiny."""
    from tests.models.downloads import drive  # which skips without gdown

    with drive.serve() as running:
        monkeypatch.setattr(drive.HTTPAdapter, "send", drive.led_to(running.server_port))
        monkeypatch.setattr(downloads, "_RETRIES", 0)
        running.content[id_of("soft_tiny")] = file_of("soft_tiny")[0]
        yield running
