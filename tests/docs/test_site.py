"""The site is built without a warning, and all its pages are in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_it_needs_no_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+stylesheet[^>]+href="https?:', text) == []


def test_public_names_are_in_the_reference(site):
    import softmaxfree.compare
    import softmaxfree.data
    import softmaxfree.explain
    import softmaxfree.export
    import softmaxfree.layers
    import softmaxfree.linearize
    import softmaxfree.mixers
    import softmaxfree.ops
    import softmaxfree.share
    import softmaxfree.tasks

    own = softmaxfree
    packages = (
        own.compare,
        own.data,
        own.explain,
        own.export,
        own.layers,
        own.linearize,
        own.mixers,
        own.ops,
        own.share,
        own.tasks,
    )
    for package in packages:
        html = (site / "reference" / f"{package.__name__.rpartition('.')[2]}.html").read_text(encoding="utf-8")
        missing = [name for name in package.__all__ if not re.search(rf'id="softmaxfree\.[\w.]*\b{name}"', html)]
        assert missing == []
