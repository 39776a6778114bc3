"""The `softmaxfree` command: the one place where it ends.

It stands outside the package, and needs only the standard library and cyclopts until a command runs: importing
`softmaxfree` imports torch and timm, which takes seconds, and neither help nor a typing error should wait for them.
What a command takes is read from the source of its function `run`, see `heads`.
"""

import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from softmaxfree_cli.failures import mendable, notes, who_failed
from softmaxfree_cli.stops import Signals

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "softmaxfree.cli.train",
    "validate": "softmaxfree.cli.validate",
    "predict": "softmaxfree.cli.predict",
    "report": "softmaxfree.cli.compare_runs",
    "recipes": "softmaxfree_cli.show",
    "models": "softmaxfree.cli.models",
    "convert": "softmaxfree.cli.convert",
    "export": "softmaxfree.cli.export",
    "push": "softmaxfree.cli.push",
    "bench": "softmaxfree.cli.bench",
    "compare": "softmaxfree.cli.compare",
    "explain": "softmaxfree.cli.explain",
    "linearize": "softmaxfree.cli.linearize",
}
"""Modules whose function `run` is the command; its signature and docstring are the command's arguments and help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: What stands after `softmaxfree`; None takes the process's own.

    Returns:
        The exit code: 0, 2 after an error that the user can mend, 130 when interrupted, 141 when the reader of its
        output left, 143 when terminated. Any other error is raised, and Python makes 1 of it.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    tokens = [token for token in given if token != "--traceback"]
    name = next((token for token in tokens if not token.startswith("-")), None)
    label = f"softmaxfree {name}" if name in COMMANDS else "softmaxfree"
    code, remarks = 0, ""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold any bytes, and go out as they came
        sys.stdout.reconfigure(errors="surrogateescape")
    with Signals(label) as signals:
        try:
            _act(name, tokens, signals)
            sys.stdout.flush()
        except BaseException as error:
            signals.raises = False
            if isinstance(error, KeyboardInterrupt):
                signals.received = signal.SIGINT
            if signals.received is None:
                return _failed(label, name, error, traceback="--traceback" in given)
            remarks = "".join(f"; {note}" for note in notes(error))
        if signals.received is not None:  # also where a library kept the exception for itself
            sys.stderr.write(signals.line(signals.received, remarks))
            code = 128 + signals.received
        return code


def _act(name: str | None, tokens: list[str], signals: Signals) -> None:
    from softmaxfree_cli.commands import parse
    from softmaxfree_cli.help import HELP, help_of, versions

    before, behind = tokens[: tokens.index(name)] if name else tokens, tokens[tokens.index(name) + 1 :] if name else []
    if "--version" in before:
        print(versions())
    elif not tokens or any(token in HELP for token in tokens):
        print(help_of(name, behind), end="")
    else:
        arguments = parse(name or tokens[0], behind)
        command = importlib.import_module(COMMANDS[str(name)])
        signals.raises = True
        with _plain_warnings():
            command.run(**arguments)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows a warning as what it says, without the line of code that it comes from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning   {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _failed(label: str, name: str | None, error: BaseException, *, traceback: bool) -> int:
    """The exit code after an error that the user can mend; any other goes on its way."""
    if isinstance(error, BrokenPipeError):  # the reader left, as `head` does; nothing is left to flush to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    message = mendable(error, name or "")
    if message is None and isinstance(error, Exception):
        error.add_note(f"{label}: {who_failed(error)}")
    if message is None or traceback:
        raise error
    print(f"{label}: {message}", file=sys.stderr)
    return 2
