"""The `softmaxfree` command: what it understands, and the one place where it ends.

It stands outside the package and needs only the standard library: importing `softmaxfree` imports torch and
timm, which takes seconds, and help should not wait for them. A command is one block below and a module
`softmaxfree.cli.<name>` whose function `run` receives the parsed arguments by name.
"""

import argparse
import difflib
import importlib
import importlib.metadata
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from softmaxfree_cli.failures import mendable, notes
from softmaxfree_cli.stops import Signals


class _Parser(argparse.ArgumentParser):
    """Prints errors as one line and help texts as they were written."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class _Command(NamedTuple):
    summary: str
    epilog: str
    overrides: bool
    add_arguments: Callable[[_Parser], None]


_COMMANDS: dict[str, _Command] = {}


def _command(name: str, summary: str, epilog: str, *, overrides: bool = False):
    """Register a command; the function below it adds the arguments.

    `{recipes}` in the epilog becomes the list of recipes. With `overrides`, `--a.b value` reaches `run` as
    `--a.b=value` in the list `overrides`.
    """

    def register(add_arguments: Callable[[_Parser], None]) -> None:
        _COMMANDS[name] = _Command(summary, epilog, overrides, add_arguments)

    return register


def _add_recipe(parser: _Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a name from the list below, or a YAML file of yours")


@_command(
    "train",
    "train a model by a recipe",
    """\
recipes:
{recipes}

overrides: every key of a recipe is an option, its path dotted:
  softmaxfree train digits --trainer.max_epochs 3 --data.batch_size 64
  softmaxfree train digits --model.lr 1e-3 --model.model_args.drop_path_rate 0.2

resume: the newest run goes on from its last checkpoint, in its folder:
  softmaxfree train digits --resume last

detection and segmentation, on scenes of digits that need no download:
  softmaxfree train scenes_detection
  softmaxfree train coco_retinanet_soft_norm_tiny --data.root /data/coco

several processes:
  torchrun --nproc-per-node 8 -m softmaxfree train imagenet_soft_tiny --data.root /data/imagenet
""",
    overrides=True,
)
def _train(parser: _Parser) -> None:
    _add_recipe(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the runs, each in one of its own: 0, 1, 2 ... (default: runs/RECIPE)",
    )
    parser.add_argument(
        "--resume", metavar="PATH", help="a checkpoint to go on from, or `last`: that of the newest run"
    )


@_command(
    "validate",
    "measure a checkpoint by a recipe's metrics",
    """\
recipes:
{recipes}

The recipe tells the data and the metrics; its keys are options as in `softmaxfree train`:
  softmaxfree validate digits --checkpoint runs/digits/0/best.ckpt
  softmaxfree validate imagenet_soft_tiny --checkpoint best.ckpt --data.root /data/imagenet
""",
    overrides=True,
)
def _validate(parser: _Parser) -> None:
    _add_recipe(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        required=True,
        help="best.ckpt or the folder `best` of a run, or other weights of the same model",
    )


@_command(
    "predict",
    "tell the classes of images, or draw what is in them",
    """\
a checkpoint is one of:
  a .ckpt of `softmaxfree train`
  a .safetensors of `softmaxfree convert`
  a folder with config.json and model.safetensors: `best` of a run, or any by timm's save_for_hf
  any other .pth or .safetensors, together with --model

examples:
  softmaxfree predict three.png --checkpoint runs/digits/0/best.ckpt
  softmaxfree predict photos/ --checkpoint soft_tiny.safetensors --format csv --out classes.csv
  softmaxfree predict cat.jpg --checkpoint SOFT_Tiny.pth --model soft_tiny --class-names imagenet.txt

dense tasks take a .ckpt of `softmaxfree train`, and write each image with boxes, masks or classes drawn, and
predictions.json, into the folder --out:
  softmaxfree predict photos/ --task detection --checkpoint best.ckpt --out drawn
  softmaxfree predict street.jpg --task segmentation --checkpoint best.ckpt
""",
)
def _predict(parser: _Parser) -> None:
    add = parser.add_argument
    add("files", metavar="PATH", nargs="+", help="images, or folders that are searched for images")
    add("--checkpoint", metavar="PATH", help="the weights, see below")
    add("--model", metavar="NAME", help="the model, where the checkpoint does not name it")
    add("--topk", metavar="K", type=int, default=5, help="classes an image (default: %(default)s)")
    add("--class-names", metavar="FILE", help="a text file, one class a line, in the order of the head")
    add("--format", choices=("table", "json", "csv"), default="table", help="default: %(default)s")
    add("--out", metavar="PATH", help="write there instead of to the terminal; a folder for dense tasks")
    add(
        "--task",
        choices=("classification", "detection", "segmentation"),
        default="classification",
        help="default: %(default)s",
    )
    add(
        "--threshold", metavar="S", type=float, default=0.5, help="score of a detection to count (default: %(default)s)"
    )
    add("--size", metavar="N", type=int, help="shorter side of the images, in pixels (default: as in the training)")
    add("--max-pixels", metavar="N", type=int, default=178_956_970, help="refuse larger images (default: %(default)s)")
    add("--on-error", choices=("skip", "fail"), default="skip", help="on an unreadable image (default: %(default)s)")
    add("--batch-size", metavar="N", type=int, default=16, help="images at a time (default: %(default)s)")
    add("--device", default="cpu", help="where the model runs, such as cuda (default: %(default)s)")


@_command(
    "models",
    "list the models: parameters, MACs, size",
    """\
GMACs, the billions of multiply-adds for one image:
  conv+linear  convolutions and linear layers alone
  executed     every product that this library computes, the inverse included
  published    the released formulation as papers count it: its order of products, without the inverse

examples:
  softmaxfree models
  softmaxfree models 'soft_norm_*' --img-size 224 512 1024 --markdown
""",
)
def _models(parser: _Parser) -> None:
    add = parser.add_argument
    add(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        default="*",
        help="such as 'soft_norm_*' (default: all models)",
    )
    add("--markdown", action="store_true", help="print a Markdown table")
    add("--img-size", metavar="N", type=int, nargs="+", help="one or more (default: the model's own)")


@_command(
    "convert",
    "turn released weights into a safetensors file",
    """\
The file is read without running any code that it may hold, and every weight must find its place. What is
written names its model, so that `softmaxfree predict --checkpoint` needs nothing else.

examples:
  softmaxfree convert SOFT_Tiny.pth soft_tiny.safetensors
  softmaxfree convert model_best.pth small.safetensors --model soft_norm_small
""",
)
def _convert(parser: _Parser) -> None:
    parser.add_argument("source", metavar="SRC", help="a checkpoint of the authors, such as SOFT_Tiny.pth")
    parser.add_argument("target", metavar="DST", help="the .safetensors file to write")
    parser.add_argument("--model", metavar="NAME", help="its model, where weights and file name leave it open")


@_command(
    "bench",
    "time the attention and the models against their peers",
    """\
Each contestant is compared with float64 before it is timed. Results are added to DIR/results/*.csv, and the
tables in DIR/README.md and the plots beside it are made again.

examples:
  softmaxfree bench                               everything, on the CPU: an hour
  softmaxfree bench model --only soft_tiny --size 4096 --forward-only
  softmaxfree bench attention --size 3136 50176 --only softmaxfree 'softmax (SDPA)'
  softmaxfree bench --device cuda --dtype bfloat16
  softmaxfree bench --explain                     which implementation runs, and why not the others
""",
)
def _bench(parser: _Parser) -> None:
    add = parser.add_argument
    add("suites", metavar="SUITE", nargs="*", help="attention, inverse or model (default: all)")
    add("--device", default="cpu", help="such as cuda (default: %(default)s)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the attention's inputs; models run under autocast (default: %(default)s)",
    )
    add("--out", metavar="DIR", default="benchmarks", help="default: %(default)s")
    add("--only", metavar="NAME", nargs="+", help="contestants, by their names in the tables (default: all)")
    add("--size", metavar="N", type=int, nargs="+", dest="sizes", help="tokens or pixels a side (default: all)")
    add(
        "--max-seconds",
        metavar="S",
        type=float,
        default=60,
        help="leave out what is expected to take longer for one run (default: %(default)s)",
    )
    add("--forward-only", action="store_true", help="leave out the backward pass, which needs more memory")
    add("--compile", action="store_true", help="time the contestants under torch.compile")
    add("--explain", action="store_true", help="say which implementation runs and why, and measure nothing")
    add("--report", action="store_true", help="make tables and plots from the CSVs, and measure nothing")


_MAIN_EPILOG = """\
commands:
{commands}

examples:
  softmaxfree train digits                    train on embedded digits, in minutes on a CPU
  softmaxfree train --help                    the recipes, and how to change them
  softmaxfree validate digits --checkpoint C  the accuracy of a checkpoint
  softmaxfree predict photos/ --checkpoint C  the five likeliest classes of every image
  softmaxfree models --markdown               the table of all models
  softmaxfree convert SOFT_Tiny.pth t.safetensors
  softmaxfree bench --explain                 which implementation of the attention runs here

`softmaxfree COMMAND --help` explains a command.
"""


def recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with the first line of its header."""
    found = {}
    for path in sorted((Path(__file__).parents[1] / "softmaxfree" / "recipes").glob("*.yaml")):
        with path.open(encoding="utf-8") as file:
            found[path.stem] = file.readline().strip("# \n")
    return found


def _columns(rows: dict[str, str]) -> str:
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())


def _nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message: names close to the one given, or all of them."""
    close = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(names)}"


def _versions() -> str:
    packages = ("softmaxfree", "torch", "timm")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return " ".join([*versions, "Python", platform.python_version()])


def _main_parser() -> _Parser:
    parser = _Parser(
        "softmaxfree",
        usage="softmaxfree [--version] [--traceback] COMMAND ...",
        description="Vision backbones with softmax-free attention (SOFT, SOFT++): train, measure, use.",
        epilog=_MAIN_EPILOG.format(commands=_columns({name: c.summary for name, c in _COMMANDS.items()})),
    )
    parser.add_argument("--version", action="store_true", help="print the versions that matter, and leave")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def _split_overrides(tokens: Iterable[str], parser: _Parser) -> tuple[list[str], list[str]]:
    """Take `--a.b value` and `--a.b=value` out of the tokens; returns overrides and rest."""
    overrides, rest = [], []
    tokens = iter(tokens)
    for token in tokens:
        key, equals, _ = token.partition("=")
        if not (key.startswith("--") and "." in key):
            rest.append(token)
        elif equals:
            overrides.append(token)
        elif (value := next(tokens, "--")).startswith("--"):
            parser.error(f"{key} needs a value")
        else:
            overrides.append(f"{key}={value}")
    return overrides, rest


def _parse(name: str, tokens: Sequence[str]) -> dict:
    """The arguments of `softmaxfree.cli.<name>.run`."""
    command = _COMMANDS[name]
    epilog = command.epilog.replace("{recipes}", _columns(recipes()))
    parser = _Parser(f"softmaxfree {name}", description=command.summary, epilog=epilog)
    command.add_arguments(parser)
    arguments = {}
    if command.overrides:
        arguments["overrides"], tokens = _split_overrides(tokens, parser)
    namespace, unknown = parser.parse_known_args(tokens)
    if unknown:
        options = re.findall(r"--[a-z][a-z-]*", parser.format_usage())
        parser.error(f"unexpected {unknown[0]!r}; {_nearest(unknown[0], options)}")
    return {**arguments, **vars(namespace)}


def _run(name: str, arguments: dict, *, traceback: bool) -> int:
    code, remarks = 0, ""
    with Signals(f"softmaxfree {name}") as signals:
        try:
            command = importlib.import_module(f"softmaxfree.cli.{name}")
            signals.raises = True
            command.run(**arguments)
        except BaseException as error:
            signals.raises = False
            if isinstance(error, KeyboardInterrupt):
                signals.received = signal.SIGINT
            if signals.received is None:
                return _failed(name, error, traceback=traceback)
            remarks = "".join(f"; {note}" for note in notes(error))
        if signals.received is not None:  # also where a library kept the exception for itself
            sys.stderr.write(signals.line(signals.received, remarks))
            code = 128 + signals.received
        return code


def _failed(name: str, error: BaseException, *, traceback: bool) -> int:
    """The exit code after an error that the user can mend; any other goes on its way."""
    if isinstance(error, BrokenPipeError):  # the reader left, as `head` does; nothing is left to flush to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    message = mendable(error, name)
    if message is None and isinstance(error, Exception):
        error.add_note(f"softmaxfree {name}: this is a bug in softmaxfree; please report it with these lines")
    if message is None or traceback:
        raise error
    print(f"softmaxfree {name}: {message}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: What stands after `softmaxfree`; None takes the process's own.

    Returns:
        The exit code: 0, 2 after an error that the user can mend, 130 when interrupted, 143 when terminated. Any
        other error is raised, and Python makes 1 of it.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    end = next((i + 1 for i, token in enumerate(tokens) if not token.startswith("-")), len(tokens))
    parser = _main_parser()
    options = parser.parse_args(tokens[:end])
    name = options.command
    if options.version:
        print(_versions())
    elif name is None:
        parser.print_help()
    elif name not in _COMMANDS:
        parser.error(f"there is no command {name!r}; {_nearest(name, _COMMANDS)}")
    else:
        return _run(name, _parse(name, tokens[end:]), traceback=options.traceback)
    return 0
