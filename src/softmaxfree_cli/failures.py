"""Which errors a user can mend, and the one line that each becomes."""

import importlib.metadata
import re
import sys
from collections.abc import Iterator

from softmaxfree_cli.errors import InputError

__all__ = ["PLUGINS", "mendable", "notes", "who_failed"]

PLUGINS = "softmaxfree.plugins"
"""Group of entry points of other packages' modules."""

_MENDABLE = {
    "lightning.fabric.utilities.exceptions": "MisconfigurationException",  # arguments of the Trainer
}

# Packages whose import name is not their name; `-` for `_` aside.
_IMPORTED_AS = {"scikit-image": "skimage", "scikit-learn": "sklearn", "grad-cam": "pytorch_grad_cam"}
_OF_WORKER = re.compile(r"\ACaught \w+ in DataLoader worker.*\n[\w.]+: ", re.DOTALL)  # torch adds the traceback


def mendable(error: BaseException, command: str) -> str | None:
    """Return the one line for an error that the user can mend, or None for a bug, which needs its traceback.

    Args:
        error: what a command raised.
        command: its name.

    Returns:
        The line, or None.
    """
    if isinstance(error, ModuleNotFoundError):
        return _missing(error, command)
    # Never imported for this: where nobody has imported one, nobody has raised it.
    known = tuple(getattr(sys.modules[module], name) for module, name in _MENDABLE.items() if module in sys.modules)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (OSError, InputError, *known)) or _checked_by_trainer(error):
        text = _OF_WORKER.sub("", str(error))
        return re.sub(r"\[Errno -?\d+\] ", "", " ".join(text.split())) or type(error).__name__
    return None


def notes(error: BaseException | None) -> Iterator[str]:
    """Yield the notes of an error and of those from which it came."""
    while error is not None:
        yield from getattr(error, "__notes__", ())
        error = error.__cause__ or error.__context__


def who_failed(error: BaseException) -> str:
    """Return a line that says whose code failed: that of the last plug-in on the way, or this package's.

    Args:
        error: one that is not mendable.

    Returns:
        The line.
    """
    found = "this is a bug in softmaxfree; please report it with these lines"
    plugins = {entry.module.partition(".")[0] for entry in importlib.metadata.entry_points(group=PLUGINS)}
    place = error.__traceback__
    while place is not None:
        name = place.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if name in plugins:
            found = f"the plug-in {name!r} failed, {place.tb_frame.f_code.co_filename}, line {place.tb_lineno}"
        place = place.tb_next
    return found


def _checked_by_trainer(error: BaseException) -> bool:
    """Whether Lightning's own code has raised it.

    It does so for arguments of the Trainer that do not fit the data, and its callbacks for a metric that is not there.
    """
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = "" if place is None else place.tb_frame.f_globals.get("__name__", "")
    own = {ValueError: "lightning.", RuntimeError: "lightning.pytorch.callbacks."}
    return any(isinstance(error, kind) and module.startswith(start) for kind, start in own.items())


def _missing(error: ModuleNotFoundError, command: str) -> str | None:
    """What to install, where the missing package is one that this package asks for."""
    extras = _extras()
    # torchmetrics tells the name in the text alone
    names = [error.name.partition(".")[0]] if error.name else re.findall(r"\w+", str(error).replace("-", "_"))
    found = next((name for name in names if name in extras), None)
    if found is None:
        return None
    of_users = [extra for extra in extras[found] if extra != "dev"] or extras[found]  # which brings all others
    extra = next((extra for extra in (command, "train") if extra in of_users), of_users[0])
    package = f"softmaxfree[{extra}]" if extra else "softmaxfree"
    return f"{error.name or found} is not installed; run: pip install '{package}'"


def _extras() -> dict[str, list[str]]:
    """Extras that bring a module, by its name; "" is what every installation has."""
    found: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("softmaxfree") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return found
    for requirement in requirements:
        if name := re.match(r"[\w.-]+", requirement):
            extra = re.search(r"""extra\s*==\s*["']([\w-]+)""", requirement)
            module = _IMPORTED_AS.get(name[0], name[0].replace("-", "_"))
            found.setdefault(module, []).append(extra[1] if extra else "")
    return found
