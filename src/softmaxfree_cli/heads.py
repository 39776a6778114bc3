"""The head of a command: its signature and docstring alone, so that help needs none of what the command imports."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter

from softmaxfree_cli.source import Module, evaluate, meanings, read

__all__ = ["Head", "head"]


_KEYS = "overrides"  # an argument of `run` that is no option of its own


class Head(NamedTuple):
    """What a command says of itself."""

    function: Callable[..., None]
    """Takes what `run` takes, and does nothing."""
    summary: str
    description: str
    examples: str
    takes_keys: bool
    """Whether the keys of a recipe are options too, which `run` gets as `overrides`."""


def head(module: str) -> Head:
    """Read the head of a module's function `run`.

    What stands before its `*` is given by place, the rest are options; without a `*` all that have a default are.

    Args:
        module: its name.

    Returns:
        The head.
    """
    source = read(module)
    if source is None:
        raise ImportError(f"no source of {module}", name=module)
    node = source.names["run"]
    assert isinstance(node, ast.FunctionDef), module
    text, _, examples = (ast.get_docstring(node) or "").partition("\nExamples:\n")
    summary, _, rest = text.partition("\n")
    body = rest.partition("\nArgs:\n")[0].partition("\nRaises:\n")[0].partition("\nReturns:\n")[0]
    paragraphs = [" ".join(paragraph.split()) for paragraph in body.split("\n\n")]

    def function(**given: Any) -> None: ...

    function.__name__ = function.__qualname__ = module.rpartition(".")[2]
    takes_keys = any(arg.arg == _KEYS for arg in node.args.args)
    parameters = list(_parameters(node, source, meanings(text)))
    vars(function)["__signature__"] = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return Head(function, summary, "\n\n".join(filter(None, paragraphs)), textwrap.dedent(examples).strip(), takes_keys)


def _parameters(node: ast.FunctionDef, module: Module, said: dict[str, str]) -> Sequence[inspect.Parameter]:
    by_place = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(by_place) - len(node.args.defaults))
    pairs = list(zip(by_place, [*defaults, *node.args.defaults], strict=True))
    options = list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    if not options:
        pairs, options = [p for p in pairs if p[1] is None], [p for p in pairs if p[1] is not None]
    kinds = [inspect.Parameter.POSITIONAL_ONLY] * len(pairs) + [inspect.Parameter.KEYWORD_ONLY] * len(options)
    out = []
    for (arg, default), kind in zip([*pairs, *options], kinds, strict=True):
        if arg.arg == _KEYS:
            continue
        assert arg.annotation is not None, f"{module.name}: {arg.arg} has no type"
        kind_of: Any = evaluate(arg.annotation, module)
        value = inspect.Parameter.empty if default is None else evaluate(default, module)
        empty = value is False or value == ()  # tells nothing that the meaning does not
        annotation: Any = Annotated[kind_of, Parameter(help=said.get(arg.arg), show_default=False if empty else None)]
        out.append(inspect.Parameter(arg.arg, kind, annotation=annotation, default=value))
    return out
