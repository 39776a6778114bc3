"""Models of timm by name, with one clear error where there is none."""

import difflib
from typing import Any

import timm

from softmaxfree.errors import InputError

__all__ = ["check_name", "create_model"]


def create_model(name: str, **arguments: Any) -> Any:
    """Return `timm.create_model(name, **arguments)`.

    Args:
        name: of the model, ours included, or with a source, such as `local-dir:FOLDER`.
        **arguments: of the model.

    Returns:
        The model.

    Raises:
        ValueError: timm has no such model, with the nearest names; the model has no such argument; or its pretrained
            weights cannot be loaded.
    """
    check_name(name)
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        raise InputError(f"model_args: {error}") from error
    except InputError:
        raise
    except Exception as error:  # without a network, each way to weights has its own
        if not arguments.get("pretrained"):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"model_args.pretrained: the weights of {name} cannot be loaded: {reason}") from error


def check_name(name: str) -> None:
    """Raises ValueError, with the nearest names, where timm has no such model."""
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models())
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"name: timm has no model {name!r}{hint}")
