"""How the blocks of the pages are run: Python, and commands where they are cheap; other commands are parsed."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from softmaxfree import plugins
from softmaxfree.cli.recipe import load_job
from softmaxfree_cli import commands, keys, main, recipes

__all__ = ["ROOT", "count", "pages", "run_blocks"]

ROOT = Path(__file__).parents[2]
SHELL = {".", "export", "pre-commit"}  # of the shell and of git; nothing of ours


def pages() -> list[Path]:
    """The README and every page of the site."""
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "src").rglob("*.md")),
    ]


def run_blocks(page: Path) -> Document:
    """Run a page from top to bottom, in the working directory, where runs of the recipes that it names are begun."""
    for name in ("bags", "classification", "digits"):
        run = Path("runs", name, "0")
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"base: {name}\n", encoding="utf-8")
    parsers = [
        PythonCodeBlockParser(),
        CodeBlockParser("bash", _shell),
        CodeBlockParser("yaml", _recipe),
        CodeBlockParser("toml", _project),
        CodeBlockParser("cpp", _cpp),
    ]
    document = Sybil(parsers).parse(page)
    for example in document.examples():
        example.evaluate()
    return document


def count(page: Path) -> int:
    """Blocks of a page, hidden ones included, but for those that show files and not code."""
    blocks = re.findall(r"^(?:```(\w+)|<!---? invisible-code-block: (\w+))", page.read_text(encoding="utf-8"), re.M)
    return sum(max(names) != "text" for names in blocks)


def _recipe(example: Example) -> None:
    path = Path("photos.yaml")  # by this name the pages call it
    path.write_text(example.parsed, encoding="utf-8")
    keys.check_keys(recipes.read_recipe(str(path)), ())


def _project(example: Example) -> None:
    project = tomllib.loads(example.parsed)
    assert project["project"]["entry-points"].keys() == {plugins.GROUP}
    assert [*project["project"]["entry-points"][plugins.GROUP].values()] == project["tool"]["setuptools"]["py-modules"]


def _cpp(example: Example) -> None:
    """`tests/export/test_aoti.py` compiles and runs it."""
    assert "int main(" in example.parsed


def _shell(example: Example) -> None:
    for line in example.parsed.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            _command(words)


def _command(words: list[str]) -> None:
    program, *rest = words
    if program == "torchrun":
        at = rest.index("softmaxfree")
        assert rest[at - 1] == "-m"
        _ours(rest[at + 1 :], several=rest[:at])
    elif program == "softmaxfree":
        _ours(rest)
    elif program == "make":
        assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M) for target in rest), words
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert rest[0] == "install", words
        for name in re.findall(r"\.\[(\w+)\]", rest[1]):
            assert name in extras, words
    else:
        assert program in SHELL, f"{words}: no test knows how to run this"


def _ours(words: list[str], several: list[str] | None = None) -> None:
    """Run what only tells something or limits its batches, and understand the rest."""
    if several is not None and "--trainer.limit_train_batches" in words:
        command = [sys.executable, "-m", "torch.distributed.run", *several, "softmaxfree", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
    elif words[0] == "recipes" or "--help" in words or words[:2] == ["models", "soft_nano"]:
        assert main(words) == 0, words
    else:
        told = commands.parse(words[0], words[1:])
        if "--model.name" in words and not {"--data.root", "--data.features"} & {*words}:  # it must fit the recipe
            load_job(told["recipe"], told["overrides"])
