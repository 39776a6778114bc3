"""Whether weights and data are of the same classes."""

from collections.abc import Sequence

from softmaxfree.errors import InputError

__all__ = ["require_same_names"]

_SHOWN = 4  # classes named in a line


def require_same_names(trained: Sequence[str], names: Sequence[str]) -> None:
    """Compare the classes of weights with those of data; their order is what labels stand for.

    Args:
        trained: in the order of the labels of the weights; empty if unknown.
        names: in the order of the labels of the data; empty if unknown.

    Raises:
        InputError: they differ.
    """
    if not names or not trained or list(names) == list(trained):
        return
    unknown = [name for name in names if name not in trained]
    if unknown and len(names) != len(trained):
        raise InputError(
            f"the data has classes that the weights do not know: {_shown(unknown)}; they know {_shown(trained)}"
        )
    wrong = next((i for i, pair in enumerate(zip(trained, names, strict=False)) if len(set(pair)) > 1), None)
    where = f"class {wrong} is {trained[wrong]!r} there and {names[wrong]!r} here" if wrong is not None else ""
    raise InputError(
        f"the weights were trained for other classes than the data has: {where or f'{list(trained)}, {list(names)}'}"
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
