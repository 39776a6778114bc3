"""What is released: wheel and sdist are whole, and what is installed from them runs."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]


def run(*command, **environment):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_wheel_has_the_sources_and_nothing_else(built):
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    names = set(zipfile.ZipFile(built[1]).namelist())
    assert {name for name in names if ".dist-info/" not in name} == sources
    for needed in ("softmaxfree/py.typed", "softmaxfree_cli/py.typed", "softmaxfree/recipes/digits.yaml"):
        assert needed in sources


def test_the_sdist_has_what_tests_and_site_need(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"Makefile", "mkdocs.yml", "docs/hooks.py", "tests/test_package.py", "benchmarks/scenes-cpu.csv"} <= names
    assert [name for name in names if name.startswith(("runs/", "site/", ".venv"))] == []


def test_the_metadata_are_right_and_the_readme_renders(built):
    pytest.importorskip("twine")
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built))


def test_what_is_installed_runs(built, tmp_path):
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile")
    run(*pip, "--target", str(tmp_path), str(built[1]))
    command = str(tmp_path / "bin" / "softmaxfree")
    version = built[1].name.split("-")[1]
    assert run(command, "--version", PYTHONPATH=str(tmp_path)).startswith(f"softmaxfree {version} torch ")
    assert "imagenet_soft_tiny" in run(command, "train", "--help", PYTHONPATH=str(tmp_path))
