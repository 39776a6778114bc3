"""Functions and classes read from their sources, without importing them: torch and Lightning take seconds."""

import ast
import builtins
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from docstring_parser import DocstringStyle, parse

__all__ = ["Argument", "Module", "arguments", "evaluate", "find", "meanings", "read"]

_LIGHT = {*sys.stdlib_module_names, "cyclopts", "softmaxfree_cli"}  # imported rather than read


class Module(NamedTuple):
    """The source of a module."""

    name: str
    is_package: bool
    names: Mapping[str, ast.stmt]
    """What binds each name at its top."""
    stars: Sequence[str]
    """Modules that all is imported from."""


class Argument(NamedTuple):
    """An argument of a class."""

    annotation: ast.expr | None
    default: ast.expr | None
    where: Module
    """The module that annotation and default are of."""
    meaning: str


@cache
def read(name: str) -> Module | None:
    """Return a module's source.

    Args:
        name: its dotted name.

    Returns:
        The module, or None if it has no source in Python.
    """
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # "", or "__main__"
        return None
    for depth in range(len(rest)):  # like `find_spec`, which would import the parents
        folders = spec.submodule_search_locations if spec else None
        if folders is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(".".join([top, *rest[: depth + 1]]), list(folders))
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        statements = list(_statements(ast.parse(Path(spec.origin).read_bytes()).body))
    except (SyntaxError, ValueError):  # importing it tells what is wrong
        return None
    names = {bound: statement for statement in statements for bound in _bound(statement)}
    module = Module(name, spec.submodule_search_locations is not None, names, [])
    stars = [_absolute(module, s) for s in statements if isinstance(s, ast.ImportFrom) and s.names[0].name == "*"]
    return module._replace(stars=stars)


def find(module: Module | None, name: str, depth: int = 20) -> tuple[Module, ast.stmt] | None:
    """Return what binds a name, wherever it is imported from.

    Args:
        module: where the name is used.
        name: such as `Trainer` or `pytorch.Trainer`.
        depth: imports that are followed; there are circles.

    Returns:
        The module that defines it and the statement; None if there is none to read.
    """
    if module is None or not name or depth == 0:
        return None
    first, _, rest = name.partition(".")
    statement = module.names.get(first)
    places: list[tuple[str, str]] = []  # modules, and names in them
    if isinstance(statement, ast.ImportFrom):
        source = _absolute(module, statement)
        original = next(a.name for a in statement.names if first in (a.asname, a.name))
        places = [(source, f"{original}.{rest}".rstrip(".")), (f"{source}.{original}", rest)]
    elif isinstance(statement, ast.Import):
        alias = next(a for a in statement.names if first in (a.asname, a.name.partition(".")[0]))
        places = [(alias.name if alias.asname else first, rest)]
    elif statement is not None:
        return None if rest else (module, statement)
    else:
        places = [(star, name) for star in module.stars]
        places += [(f"{module.name}.{first}", rest)] if module.is_package else []
    return next((found for place, inner in places if (found := find(read(place), inner, depth - 1))), None)


def evaluate(node: ast.expr, module: Module) -> Any:
    """Return the value of an annotation or a default.

    Args:
        node: the expression.
        module: where it stands.

    Returns:
        Its value.

    Raises:
        LookupError: the source does not tell.
    """
    used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    values = {name: _value(module, name) for name in used if not hasattr(builtins, name)}
    return eval(compile(ast.Expression(node), module.name, "eval"), values)


def arguments(name: str) -> dict[str, Argument] | None:
    """Return what a class takes, that of its bases included where it hands `**kwargs` on; or a function.

    Args:
        name: dotted name of the class or function.

    Returns:
        Its arguments by name, or None where the source does not tell.
    """
    top, _, rest = name.partition(".")
    found = find(read(top), rest)
    if found is None:
        return None
    if isinstance(found[1], ast.FunctionDef):
        return dict(_own(found[1], found[0], meanings(ast.get_docstring(found[1]))))
    return _of_class(*found)


def meanings(docstring: str | None) -> dict[str, str]:
    """Return what a Google docstring says of each argument, in one line each.

    Args:
        docstring: the text.

    Returns:
        Meanings by name.
    """
    parsed = parse(docstring or "", style=DocstringStyle.GOOGLE)
    return {param.arg_name: _without_markup(param.description or "") for param in parsed.params}


def _without_markup(text: str) -> str:
    """One line, without roles of Sphinx and without the default, which is told apart."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
    return re.sub(r" ?Default: `[^`]*`\.?", "", text)


def _of_class(module: Module, node: ast.stmt) -> dict[str, Argument] | None:
    if not isinstance(node, ast.ClassDef):
        return None
    bases = [found for base in node.bases if (found := find(module, ast.unparse(base))) is not None]
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return next((args for base in bases if (args := _of_class(*base)) is not None), {} if not node.bases else None)
    said = meanings(ast.get_docstring(node)) | meanings(ast.get_docstring(init))
    own = dict(_own(init, module, said))
    if init.args.kwarg is None:
        return own
    inherited = next((args for base in bases if (args := _of_class(*base)) is not None), None)
    if inherited is None:
        return None
    calls = [node for node in ast.walk(init) if isinstance(node, ast.Call)]
    fixed = {k.arg for call in calls if ast.unparse(call.func) == "super().__init__" for k in call.keywords}
    return own | {
        name: argument._replace(meaning=said.get(name, argument.meaning))
        for name, argument in inherited.items()
        if name not in own and name not in fixed
    }


def _own(function: ast.FunctionDef, module: Module, said: Mapping[str, str]) -> Iterator[tuple[str, Argument]]:
    given = function.args
    by_place = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(by_place) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    for arg, default in zip([*by_place, *given.kwonlyargs], defaults, strict=True):
        if arg.arg != "self":
            yield arg.arg, Argument(arg.annotation, default, module, said.get(arg.arg, ""))


def _value(module: Module, name: str) -> Any:
    statement = module.names.get(name)
    if isinstance(statement, ast.Import) or (
        isinstance(statement, ast.ImportFrom) and _absolute(module, statement).partition(".")[0] in _LIGHT
    ):
        bound: dict[str, Any] = {}
        exec(compile(ast.Module([statement], []), module.name, "exec"), bound)
        return bound[name]
    found = find(module, name)
    if found is None or not isinstance(found[1], ast.Assign | ast.AnnAssign) or found[1].value is None:
        raise LookupError(f"the source of {module.name} does not tell the value of {name}")
    return evaluate(found[1].value, found[0])


def _absolute(module: Module, statement: ast.ImportFrom) -> str:
    if not statement.level:
        return statement.module or ""
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    return importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, and of its conditions; a later one overrules."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            inner = [s for handler in getattr(statement, "handlers", ()) for s in handler.body]
            yield from _statements([*inner, *statement.orelse, *statement.body])
        else:
            yield statement


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return [statement.name]
    if isinstance(statement, ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    if isinstance(statement, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
