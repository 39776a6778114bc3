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
from softmaxfree.errors import InputError
from softmaxfree_cli import main
from softmaxfree_cli.failures import mendable
from tests.cli.quick_run import overrides

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

    def make(run):
        monkeypatch.setitem(sys.modules, "softmaxfree.cli.fake", SimpleNamespace(run=run))
        fake = softmaxfree_cli._Command("fake", "", False, lambda parser: None)
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
        (InputError("width 65 is not\n  divisible by 2"), "width 65 is not divisible by 2"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.pth"), "x.pth: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (InputError(), "InputError"),
    ],
)
def test_an_expected_error_is_one_line(error, message, command, capsys):
    command(fail_with(error))
    assert main(["fake"]) == 2
    assert capsys.readouterr().err == f"softmaxfree fake: {message}\n"


def test_traceback_shows_where_an_expected_error_came_from(command):
    command(fail_with(InputError("no")))
    with pytest.raises(InputError, match="no"):
        main(["--traceback", "fake"])


@pytest.mark.parametrize("error", [KeyError("bug"), ValueError("deep inside"), RuntimeError("bug"), ImportError("bug")])
def test_an_unexpected_error_keeps_its_traceback_and_asks_to_be_reported(error, command):
    command(fail_with(error))
    with pytest.raises(type(error)) as caught:
        main(["fake"])
    assert "please report it" in "".join(caught.value.__notes__)


def test_an_unexpected_error_ends_with_code_1():
    code = """
import sys, types, softmaxfree_cli as cli
sys.modules["softmaxfree.cli.fake"] = types.SimpleNamespace(run=lambda: int("x"))
cli._COMMANDS["fake"] = cli._Command("", "", False, lambda parser: None)
sys.exit(cli.main(["fake"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert "please report it" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("lightning.pytorch", "softmaxfree[train]"),
        ("matplotlib", "softmaxfree[train]"),
        ("pycocotools", "softmaxfree[train]"),
        ("skimage", "softmaxfree[train]"),
        ("sklearn", "softmaxfree[train]"),
        ("mlxtend", "softmaxfree[train]"),
        ("segmentation_models_pytorch", "softmaxfree[train]"),
        ("transformers", "softmaxfree[train]"),
        ("nystrom_attention", "softmaxfree[bench]"),
        ("timm", "softmaxfree"),
    ],
)
def test_a_missing_package_tells_what_to_install(module, package, command, capsys):
    command(fail_with(ModuleNotFoundError("no", name=module)))
    assert main(["fake"]) == 2
    message = f"{module} is not installed; run: pip install '{package}'\n"
    assert capsys.readouterr().err == f"softmaxfree fake: {message}"


def test_a_command_is_told_its_own_extra(capsys):
    error = ModuleNotFoundError("no", name="matplotlib")
    assert "[bench]" in str(mendable(error, "bench"))
    assert "[train]" in str(mendable(error, "predict"))


def test_a_missing_package_that_only_the_message_names(command, capsys):
    command(fail_with(ModuleNotFoundError("`MAP` requires that `pycocotools` is installed. Please install it")))
    assert main(["fake"]) == 2
    assert "pycocotools is not installed; run: pip install 'softmaxfree[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["softmaxfree.cli.fakes", "somebody_else", None])
def test_a_missing_module_that_no_extra_brings_is_a_bug(name, command):
    command(fail_with(ModuleNotFoundError("no", name=name)))
    with pytest.raises(ModuleNotFoundError):
        main(["fake"])


@pytest.mark.parametrize(
    ("hidden", "argv"),
    [
        ("pycocotools", ["predict", "a.png", "--task", "detection"]),
        ("matplotlib", ["predict", "a.png", "--task", "detection"]),
        ("lightning", ["train", "digits"]),
        ("jsonargparse", ["train", "digits"]),
        ("segmentation_models_pytorch", ["train", "scenes_segmentation"]),
        ("mlxtend", ["train", "digits"]),
    ],
)
def test_a_hidden_package_is_named_with_its_extra(hidden, argv, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    code = f"""
import sys
sys.modules[{hidden!r}] = None
from softmaxfree_cli import main
sys.exit(main({argv!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    line = rf"softmaxfree {argv[0]}: {hidden}[\w.]* is not installed; run: pip install 'softmaxfree\[train\]'\n"
    assert re.fullmatch(line, result.stderr), result.stderr


def test_an_interrupt_is_one_line(command, capsys):
    command(fail_with(KeyboardInterrupt()))
    assert main(["fake"]) == 130
    assert capsys.readouterr().err == "softmaxfree fake: interrupted\n"


def test_a_closed_pipe_is_silent():
    code = """
import sys, types, softmaxfree_cli as cli
run = lambda: [print("x" * 1000) for _ in range(1000)]
sys.modules["softmaxfree.cli.fake"] = types.SimpleNamespace(run=run)
cli._COMMANDS["fake"] = cli._Command("", "", False, lambda parser: None)
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lr=abc", "model.lr"),
        ("model.lr=-1", "model.lr must be 0 to inf, got -1"),
        ("model.label_smoothing=3", "model.label_smoothing must be 0 to 1, got 3"),
        ("model.opt=adamm", "model.opt 'adamm' with"),
        ('model.opt_args={"nonsense": 1}', "nonsense"),
        ('model.opt_args={"betas": [2, 3]}', "Invalid beta"),
        ("model.sched=cosin", "model.sched"),
        ("model.name=soft_nan", "timm has no model 'soft_nan'"),
        ("model.model_args.nonsense=1", "'nonsense'"),
        ("model.model_args.depths=[1,1,1,x]", "depths must be a whole number for each stage"),
        ("model.model_args.drop_path_rate=high", "drop_path_rate must be in [0, 1)"),
        ("model.model_args.solver=foo", "solver 'foo' is not one of"),
        ("model.model_args.pretrained=true", "the authors published no weights of soft_nano"),
        ("model.num_classes=7", "the data has 10 classes"),
        ("model.num_classes=0", "model.num_classes must be 2 or more, got 0"),
        ("data.batch_size=0", "data.batch_size must be 1 or more, got 0"),
        ("data.num_workers=-1", "data.num_workers must be 0 or more, got -1"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be 1 or more, got 0"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must be 0 or more, got -1"),
        ("model.ema_decay=2", "model.ema_decay must be from 0 to 1, got 2"),
        ("trainer.accelerator=quantum", "invalid accelerator name"),
        ("trainer.accelerator=tpu", "torch_xla"),
        ("trainer.devices=999", "trainer.devices is 999"),
        ("trainer.precision=17", "trainer.precision"),
        ("trainer.strategy=foo", "strategy"),
        ("trainer.max_epochs=x", "max_epochs"),
        ("trainer.check_val_every_n_epoch=x", "check_val_every_n_epoch"),
        ("trainer.val_check_interval=1000", "val_check_interval"),
        ("trainer.gradient_clip_algorithm=foo", "gradient_clip_algorithm"),
        ("trainer.profiler=foo", "profiler"),
    ],
)
def test_a_wrong_value_of_a_key_is_one_line(override, message, tmp_path, capfd):
    short = overrides(trainer__max_epochs=1, trainer__limit_train_batches=2, model__warmup_epochs=0)
    key = override.partition("=")[0]
    arguments = [argument for argument in short if not argument.startswith(f"--{key}=")]
    assert main(["train", "digits", "--out", str(tmp_path), *arguments, f"--{override}"]) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if not text.startswith("model.ema_decay 0.99 ")]
    assert line.startswith("softmaxfree train: ")
    assert message in line
