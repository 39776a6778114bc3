"""The command line: what it understands, what it imports, and what becomes of errors."""

import errno
import importlib
import inspect
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

import softmaxfree_cli
from softmaxfree_cli import main

MINIMAL = {
    "bench": [],
    "train": ["digits"],
    "validate": ["digits", "--checkpoint", "best.ckpt"],
    "predict": ["image.png"],
    "models": [],
    "convert": ["a.pth", "b.safetensors"],
}


@pytest.fixture
def command(monkeypatch):
    """Makes a command `fake` that does what it is given."""

    def make(run, extra=None):
        monkeypatch.setitem(sys.modules, "softmaxfree.cli.fake", SimpleNamespace(run=run))
        fake = softmaxfree_cli._Command("fake", "", extra, False, lambda parser: None)
        monkeypatch.setitem(softmaxfree_cli._COMMANDS, "fake", fake)

    return make


def fail_with(error):
    def run():
        raise error

    return run


def refused(capsys, *argv):
    """Runs a command that the user got wrong; returns its one line on stderr."""
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_imports_nothing_heavy():
    code = """
import contextlib, io, sys
import softmaxfree_cli
for argv in [[], ["--help"], ["--version"], *([name, "--help"] for name in softmaxfree_cli._COMMANDS)]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        softmaxfree_cli.main(argv)
heavy = {"torch", "timm", "numpy", "lightning", "jsonargparse", "rich", "softmaxfree"}
print(*sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_help_tells_every_command_with_an_example(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for name, summary in ((n, c.summary) for n, c in softmaxfree_cli._COMMANDS.items()):
        assert re.search(rf"^  {name} +{re.escape(summary)}$", text, re.M)
        assert re.search(rf"^  softmaxfree {name} ", text, re.M)


@pytest.mark.parametrize("name", softmaxfree_cli._COMMANDS)
def test_every_command_runs_with_what_it_parses(name):
    arguments = softmaxfree_cli._parse(name, MINIMAL[name])
    run = importlib.import_module(f"softmaxfree.cli.{name}").run
    inspect.signature(run).bind(**arguments)


@pytest.mark.parametrize("name", softmaxfree_cli._COMMANDS)
def test_help_of_a_command_has_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    examples = re.findall(rf"softmaxfree ({name} .*)$", capsys.readouterr().out, re.M)[1:]  # the first is the usage
    assert examples
    for example in examples:
        softmaxfree_cli._parse(name, example.replace("'", "").split()[1:])


def test_train_help_lists_the_recipes(capsys):
    recipes = softmaxfree_cli.recipes()
    assert "digits" in recipes
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name, description in recipes.items():
        assert re.search(rf"^  {name} +{re.escape(description)}$", text, re.M)
        assert len(description) > 10


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.match(r"softmaxfree \S+ torch \S+ timm \S+ Python \S+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trainn"], "there is no command 'trainn'; did you mean train?"),
        (["xyz"], "there is no command 'xyz'; choose from train, validate"),
        (["--verbose"], "--verbose"),
        (["models", "--markdwn"], "unexpected '--markdwn'; did you mean --markdown?"),
        (["models", "--img-size", "big"], "argument --img-size: invalid int value: 'big'"),
        (["predict"], "required: PATH"),
        (["predict", "a.png", "--format", "xml"], "'xml'"),
        (["validate", "digits"], "required: --checkpoint"),
        (["train", "digits", "--model.lr"], "--model.lr needs a value"),
        (["train", "digits", "--model.lr", "--data.batch_size", "3"], "--model.lr needs a value"),
        (["convert", "--model.lr", "3", "a", "b"], "unexpected '--model.lr'"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv, message, capsys):
    assert message in refused(capsys, *argv)


def test_overrides_stand_anywhere_and_keep_their_values():
    line = "--trainer.max_epochs 3 digits --model.lr=1e-3 --out a.b --data.shift -0.1 --model.args {x:[1,2]}"
    assert softmaxfree_cli._parse("train", line.split()) == {
        "recipe": "digits",
        "resume": None,
        "out": "a.b",
        "overrides": [
            "--trainer.max_epochs=3",
            "--model.lr=1e-3",
            "--data.shift=-0.1",
            "--model.args={x:[1,2]}",
        ],
    }


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("width 65 is not\n  divisible by 2"), "width 65 is not divisible by 2"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.pth"), "x.pth: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_expected_error_is_one_line(error, message, command, capsys):
    command(fail_with(error))
    assert main(["fake"]) == 2
    assert capsys.readouterr().err == f"softmaxfree fake: {message}\n"


def test_traceback_shows_where_an_expected_error_came_from(command):
    command(fail_with(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        main(["--traceback", "fake"])


def test_an_unexpected_error_keeps_its_traceback(command):
    command(fail_with(KeyError("bug")))
    with pytest.raises(KeyError):
        main(["fake"])


@pytest.mark.parametrize(("extra", "package"), [("train", "softmaxfree[train]"), (None, "softmaxfree")])
def test_a_missing_package_tells_what_to_install(extra, package, command, capsys):
    command(fail_with(ModuleNotFoundError("no", name="lightning.pytorch")), extra)
    assert main(["fake"]) == 2
    message = f"lightning.pytorch is not installed; run: pip install '{package}'\n"
    assert capsys.readouterr().err == f"softmaxfree fake: {message}"


def test_a_missing_module_of_our_own_is_a_bug(command):
    command(fail_with(ModuleNotFoundError("no", name="softmaxfree.cli.fakes")))
    with pytest.raises(ModuleNotFoundError):
        main(["fake"])


def test_an_interrupt_is_one_line(command, capsys):
    command(fail_with(KeyboardInterrupt()))
    assert main(["fake"]) == 130
    assert capsys.readouterr().err == "softmaxfree fake: interrupted\n"


def test_a_closed_pipe_is_silent():
    code = """
import sys, types, softmaxfree_cli as cli
run = lambda: [print("x" * 1000) for _ in range(1000)]
sys.modules["softmaxfree.cli.fake"] = types.SimpleNamespace(run=run)
cli._COMMANDS["fake"] = cli._Command("", "", None, False, lambda parser: None)
sys.exit(cli.main(["fake"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


def test_predict_models_and_convert_need_no_extra():
    code = """
import sys
import softmaxfree.cli.convert, softmaxfree.cli.models, softmaxfree.cli.predict
print(*sorted({"lightning", "jsonargparse", "torchmetrics", "matplotlib", "rich", "mlxtend"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
