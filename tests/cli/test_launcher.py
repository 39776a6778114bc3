"""The command line: what it understands, what it imports, and what becomes of errors."""

import errno
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

import softmaxfree
from softmaxfree.errors import InputError
from softmaxfree_cli import COMMANDS, main
from softmaxfree_cli.commands import bind, parse
from softmaxfree_cli.failures import mendable
from softmaxfree_cli.heads import head
from softmaxfree_cli.recipes import recipes
from tests.cli.quick_run import overrides

MINIMAL = {
    "bench": [],
    "compare": [],
    "explain": ["cat.jpg", "--checkpoint", "c.ckpt", "--point", "3,4"],
    "linearize": ["teacher", "--data", "photos", "--size", "224"],
    "train": ["digits"],
    "validate": ["digits", "--checkpoint", "best.ckpt"],
    "predict": ["image.png"],
    "report": ["runs/digits/0"],
    "export": ["runs/digits/0", "digits.onnx"],
    "push": ["runs/digits/0", "user/name"],
    "recipes": [],
    "models": [],
    "convert": ["a.pth", "b.safetensors"],
}


@pytest.fixture
def command(monkeypatch):
    """Makes the command `models` do what it is given."""

    def make(run):
        monkeypatch.setitem(sys.modules, COMMANDS["models"], SimpleNamespace(run=run))

    return make


def fail_with(error):
    def run():
        raise error

    return run


def refused(capsys, *argv):
    """Runs a command that the user got wrong; returns its one line on stderr."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def told(capsys, *argv):
    """Runs a command that succeeds; returns what it prints."""
    assert main(argv) == 0
    return capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = """
import contextlib, io, sys
from softmaxfree_cli import COMMANDS, main
lines = ["", "--help", "--version", *(f"{name} --help" for name in COMMANDS)]
lines += ["recipes", "train digits --help", "validate scenes_detection -h", "recipes show imagenet_soft_tiny"]
lines += ["trian", "train digits --lr 3", "train ade20k_upernet_soft_norm_tiny", "train none.yaml", "predict"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    codes = [main(line.split()) for line in lines]
assert codes == [0] * (len(lines) - 5) + [2] * 5, codes
heavy = {"torch", "timm", "numpy", "lightning", "softmaxfree"}
print(*sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_help_tells_every_command(capsys):
    text = told(capsys)
    assert text == told(capsys, "--help") == told(capsys, "-h")
    for name, module in COMMANDS.items():
        assert re.search(rf"^│ {name} +{re.escape(head(module).summary[:40])}", text, re.M)
    for line in re.findall(r"^  softmaxfree (.*?)(?:  |$)", text, re.M):
        name, *words = line.split()
        bind(name, [word for word in words if word != "--help"])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_what_its_run_takes(name):
    run = importlib.import_module(COMMANDS[name]).run
    parameters = inspect.signature(run).parameters.values()
    own = inspect.signature(head(COMMANDS[name]).function).parameters
    wanted = {p.name: p.default for p in parameters if p.name != "overrides"}
    assert {p.name: p.default for p in own.values()} == wanted
    inspect.signature(run).bind(**parse(name, MINIMAL[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_meanings_and_examples_that_parse(name, capsys):
    text = told(capsys, name, "--help")
    parameters = head(COMMANDS[name]).function.__annotations__.items()
    assert [key for key, kind in parameters if not kind.__metadata__[-1].help] == []
    examples = re.findall(rf"^  (?:.* -m )?softmaxfree ({name}\b.*)$", text, re.M)
    assert examples
    for example in examples:
        bind(name, shlex.split(example)[1:])


def test_train_help_lists_the_recipes(capsys):
    assert "digits" in recipes()
    text = told(capsys, "train", "--help")
    for name, description in recipes().items():
        assert re.search(rf"^  {name} +{re.escape(description)}$", text, re.M)
        assert len(description) > 10


def test_version(capsys):
    own = re.escape(softmaxfree.__version__)
    assert re.match(rf"softmaxfree {own} torch \S+ timm \S+ Python \S+\n", told(capsys, "--version"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trainn", 'softmaxfree: Unknown command "trainn". Did you mean "train"?'),
        ("xyz", 'Unknown command "xyz". Available commands: train, validate'),
        ("xyz --help", 'Unknown command "xyz". Available commands: train, validate'),
        ("--verbose", "--verbose"),
        ("models --markdwn", "softmaxfree models: Unknown option: --markdwn. Did you mean --markdown?"),
        ("models -x", "Unknown option: -x. Choose from --markdown, --img-size."),
        ("models --img-size big", 'Invalid value for --img-size: unable to convert "big" into int.'),
        ("predict", "FILES is missing"),
        ("predict a.png --topk", "--topk needs a value"),
        ("predict a.png --format xml", 'Invalid value "xml" for --format. Choose from: "table", "json", "csv".'),
        ("validate digits", "--checkpoint is missing: digits is a recipe"),
        ("validate digitss --checkpoint a.ckpt", "there is no recipe 'digitss'; did you mean digits?"),
        ("validate runs/nowhere", "there is no folder runs/nowhere, and no recipe of that name"),
        ("validate EMPTY", "is a folder without config.yaml, so no run of `softmaxfree train`"),
        ("validate RUN --data.batchsize 3", "unknown key --data.batchsize; did you mean --data.batch_size?"),
        ("train RUN", "is a run, not a recipe; its recipe is"),
        ("train nothing.yaml", "nothing.yaml: No such file or directory"),
        ("train digits.yml", "digits.yml: No such file or directory"),
        ("train digits --model.lr", "--model.lr needs a value"),
        ("train digits --model.lr --data.batch_size 3", "--model.lr needs a value"),
        ("train digits digits", "unexpected 'digits'\n"),
        ("train classification EMPTY", "; for the data, give --data.root "),
        ("train", "RECIPE is missing; `softmaxfree recipes` lists them"),
        ("train digits --resum last", "unknown key --resum; did you mean --resume?"),
        ("train digits --lr 3", "unknown key --lr; did you mean --model.lr?"),
        ("train digits --epochs 3", "unknown key --epochs; did you mean --trainer.max_epochs?"),
        ("train digits --model.lerning_rate 3", "unknown key --model.lerning_rate; did you mean --model.lr?\n"),
        ("train digits --data.image_size 3", "unknown key --data.image_size; did you mean --data.img_size?\n"),
        ("train digits --batch 3", "unknown key --batch; did you mean --data.batch_size?\n"),
        ("train digits --batch-size=3", "unknown key --batch-size; did you mean --data.batch_size?"),
        ("train digits --trainer.lr 3", "unknown key --trainer.lr; did you mean --model.lr?"),
        ("train digits --in_chans 1", "unknown key --in_chans; did you mean --model.model_args.in_chans?"),
        ("train digits --data.seed 3", "unknown key --data.seed; did you mean --run.seed"),
        ("train digits --xy 3 --lr 3", "unknown key --xy; the sections are run, model, data, trainer"),
        ("train digits --xy 3 --lr 3", "unknown key --lr; did you mean --model.lr?"),
        ("train digits --print_config", "`softmaxfree recipes show RECIPE` prints a whole recipe"),
        ("train ade20k_upernet_soft_norm_tiny", "required: --data.root (Folder of the data"),
        ("recipes show", "which recipe?"),
        ("recipes show digitss", "there is no recipe 'digitss'; did you mean digits?"),
        ("recipes show digits --out EMPTY", "is there already"),
        ("report", "RUNS is missing"),
        ("convert --model.lr 3 a b", "Unknown option: --model.lr. Did you mean --model?"),
        ("convert a b c", "unexpected 'c'"),
    ],
)
def test_a_wrong_command_line_is_one_line(line, message, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("base: digits")
    places = {"EMPTY": str(tmp_path / "empty"), "RUN": str(tmp_path / "run")}
    assert message in refused(capsys, *(places.get(word, word) for word in line.split()))


def test_overrides_stand_anywhere_and_keep_their_values():
    line = "--trainer.max_epochs 3 digits --model.lr=1e-3 --out a.b --data.shift -0.1 --model.args {x:[1,2]}"
    assert bind("train", line.split())[0] == {
        "recipe": "digits",
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
        (InputError("a.json: [Errno 2] No such file or directory: 'a'"), "a.json: No such file or directory: 'a'"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.pth"), "x.pth: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (InputError(), "InputError"),
    ],
)
def test_an_expected_error_is_one_line(error, message, command, capsys):
    command(fail_with(error))
    assert main(["models"]) == 2
    assert capsys.readouterr().err == f"softmaxfree models: {message}\n"


def test_traceback_shows_where_an_expected_error_came_from(command):
    command(fail_with(InputError("no")))
    with pytest.raises(InputError, match="no"):
        main(["--traceback", "models"])


@pytest.mark.parametrize("error", [KeyError("bug"), ValueError("deep inside"), RuntimeError("bug"), ImportError("bug")])
def test_an_unexpected_error_keeps_its_traceback_and_asks_to_be_reported(error, command):
    command(fail_with(error))
    with pytest.raises(type(error)) as caught:
        main(["models"])
    assert "please report it" in "".join(caught.value.__notes__)


def test_an_unexpected_error_ends_with_code_1():
    code = """
import sys, types, softmaxfree_cli as cli
sys.modules["softmaxfree.cli.models"] = types.SimpleNamespace(run=lambda: int("x"))
sys.exit(cli.main(["models"]))
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
        ("pytorch_grad_cam", "softmaxfree[explain]"),
        ("onnxruntime", "softmaxfree[export]"),
        ("timm", "softmaxfree"),
    ],
)
def test_a_missing_package_tells_what_to_install(module, package, command, capsys):
    command(fail_with(ModuleNotFoundError("no", name=module)))
    assert main(["models"]) == 2
    message = f"{module} is not installed; run: pip install '{package}'\n"
    assert capsys.readouterr().err == f"softmaxfree models: {message}"


def test_a_command_is_told_its_own_extra(capsys):
    error = ModuleNotFoundError("no", name="matplotlib")
    assert "[bench]" in str(mendable(error, "bench"))
    assert "[train]" in str(mendable(error, "predict"))


def test_a_missing_package_that_only_the_message_names(command, capsys):
    command(fail_with(ModuleNotFoundError("`MAP` requires that `pycocotools` is installed. Please install it")))
    assert main(["models"]) == 2
    assert "pycocotools is not installed; run: pip install 'softmaxfree[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["softmaxfree.cli.fakes", "somebody_else", None])
def test_a_missing_module_that_no_extra_brings_is_a_bug(name, command):
    command(fail_with(ModuleNotFoundError("no", name=name)))
    with pytest.raises(ModuleNotFoundError):
        main(["models"])


@pytest.mark.parametrize(
    ("hidden", "argv"),
    [
        ("matplotlib", ["train", "digits"]),
        pytest.param("lightning", ["train", "digits"], marks=pytest.mark.slow),
        pytest.param("jsonargparse", ["train", "digits"], marks=pytest.mark.slow),
        ("segmentation_models_pytorch", ["train", "scenes_segmentation"]),
        pytest.param("mlxtend", ["train", "digits"], marks=pytest.mark.slow),
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
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "softmaxfree models: interrupted\n"


def test_a_closed_pipe_is_silent():
    code = """
import sys, types, softmaxfree_cli as cli
run = lambda: [print("x" * 1000) for _ in range(1000)]
sys.modules["softmaxfree.cli.models"] = types.SimpleNamespace(run=run)
sys.exit(cli.main(["models"]))
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
        ("model.opt=adamm", "model.opt: there is no 'adamm'; did you mean adam"),
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
