"""Mixers by name."""

from typing import Any

from timm.layers import register_notrace_module

from softmaxfree.arguments import require_known
from softmaxfree.errors import InputError
from softmaxfree.mixers.mixer import AbstractMixer, own_arguments
from softmaxfree.plugins import is_again, load_plugins

_RESERVED = ("class_token",)  # the released last stage
_MIXERS: dict[str, type[AbstractMixer]] = {}


def register(mixer: type[AbstractMixer]) -> type[AbstractMixer]:
    """Makes a mixer known by its `name`; a class decorator.

    Args:
        mixer: the class.

    Returns:
        The same.

    Raises:
        InputError: it has no name, or another mixer has it.
    """
    if not (isinstance(mixer, type) and issubclass(mixer, AbstractMixer)):
        raise InputError(f"a mixer must be a subclass of AbstractMixer, got {mixer!r}")
    name = mixer.name
    known = _MIXERS.get(name, mixer) if isinstance(name, str) else mixer
    again = is_again(known, mixer)
    if not isinstance(name, str) or not name or name in _RESERVED or not again:
        other = "" if again else f", which {known.__module__}.{known.__qualname__} has"
        raise InputError(f"name of {mixer.__qualname__} must be a text that no other mixer has, got {name!r}{other}")
    _MIXERS[mixer.name] = register_notrace_module(mixer)  # what a mixer computes depends on sizes
    return mixer


def list_mixers() -> list[str]:
    """Returns the names of all mixers, those of plug-ins included."""
    load_plugins()
    return sorted(_MIXERS)


def mixer_class(name: str) -> type[AbstractMixer]:
    """Returns the class of a name.

    Args:
        name: of a mixer.

    Returns:
        Its class.

    Raises:
        InputError: there is none, with the nearest names.
    """
    try:
        require_known("mixer", name, list_mixers())
    except InputError as error:
        raise InputError(f"{error}; one of another package is known once that package is installed") from None
    return _MIXERS[name]


def create_mixer(name: str, *, dim: int, num_heads: int, **own: Any) -> AbstractMixer:
    """Makes a mixer.

    Args:
        name: of a mixer, see `list_mixers`.
        dim: channels `C`.
        num_heads: number of heads; divides `dim`.
        **own: arguments of this mixer, and `device` and `dtype` of its weights.

    Returns:
        The mixer.

    Raises:
        InputError: there is no such mixer or argument, or an argument is out of range.
    """
    mixer = mixer_class(name)
    known = own_arguments(mixer)
    for key in own.keys() - {"device", "dtype"}:
        if key not in known:
            raise InputError(f"the mixer {name} has no argument {key!r}; it has {', '.join(known) or 'no arguments'}")
    return mixer(dim, num_heads, **own)
