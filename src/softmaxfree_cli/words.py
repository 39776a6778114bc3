"""Types, defaults and values as words."""

import ast
import json
from collections.abc import Mapping
from typing import Any

from softmaxfree_cli.source import Module, evaluate, find

__all__ = ["columns", "default_of", "in_yaml", "type_in_words"]

_WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "None": "null",
    "Any": "anything",
    "PositiveInt": "whole number from 1",
}
_MANY = {"text": "texts", "whole number": "whole numbers", "number": "numbers"}


def type_in_words(node: ast.expr | None, module: Module) -> str:
    """Return what values an annotation allows.

    Args:
        node: the annotation; None if there is none.
        module: where it stands.

    Returns:
        Such as `number or null`.
    """
    return " or ".join(dict.fromkeys(_words(node, module)))


def default_of(node: ast.expr, module: Module) -> Any:
    """Return the value of a default.

    Args:
        node: the expression.
        module: where it stands.

    Returns:
        The value, or its source if that does not tell.
    """
    try:
        return evaluate(node, module)
    except LookupError:
        return ast.unparse(node)


def columns(rows: Mapping[str, str]) -> str:
    """Return names and texts in two columns.

    Args:
        rows: texts by name.

    Returns:
        Lines, indented.
    """
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())


def in_yaml(value: Any) -> str:
    """Return a value as YAML, in one line.

    Args:
        value: of a recipe.

    Returns:
        The text.
    """
    import yaml
    from jsonargparse import get_loader

    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:  # a default that is an object
        return str(value)
    text = text.removesuffix("\n...\n").strip()
    same = "\n" not in text and get_loader("yaml")(text) == value
    return text if same or isinstance(value, tuple) else json.dumps(value, ensure_ascii=False, default=str)


def _words(node: ast.expr | None, module: Module) -> list[str]:
    if node is None:
        return ["anything"]
    if isinstance(node, ast.BinOp):
        return [*_words(node.left, module), *_words(node.right, module)]
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # a type in quotes
            return _words(ast.parse(node.value, mode="eval").body, module)
        return [_WORDS[str(node.value)] if node.value is None else str(node.value)]
    if isinstance(node, ast.Subscript):
        return _of_generic(node, module)
    name = ast.unparse(node)
    if name in _WORDS:
        return [_WORDS[name]]
    found = find(module, name)
    if found is not None and isinstance(found[1], ast.Assign | ast.AnnAssign) and found[1].value is not None:
        return _words(found[1].value, found[0])
    return [{"dict": "mapping", "list": "list", "timedelta": "time"}.get(name, name.rpartition(".")[2])]


def _of_generic(node: ast.Subscript, module: Module) -> list[str]:
    kind = ast.unparse(node.value).rpartition(".")[2]
    if isinstance(imported := module.names.get(kind), ast.ImportFrom):
        kind = next(alias.name for alias in imported.names if kind in (alias.asname, alias.name))
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if kind == "Literal":
        return [str(ast.literal_eval(value)) for value in inner]
    if kind == "Annotated":
        return _words(inner[0], module)
    if kind in ("Optional", "Union"):
        return [word for part in inner for word in _words(part, module)] + ["null"] * (kind == "Optional")
    parts = [" or ".join(_words(part, module)) for part in inner if ast.unparse(part) != "..."]
    if kind in ("tuple", "Tuple") and len(parts) == len(inner):
        same = len(set(parts)) == 1 and parts[0] in _MANY
        return [f"list of {len(parts)} {_MANY[parts[0]]}" if same else f"list of {len(parts)}: {', '.join(parts)}"]
    if kind in ("dict", "Dict", "Mapping"):
        return ["mapping"]
    return [f"list of {_MANY.get(parts[0], parts[0])}"]
