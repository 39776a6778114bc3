"""Which mixer each stage of a pyramid has, and with which arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

from softmaxfree.errors import InputError
from softmaxfree.mixers import mixer_class
from softmaxfree.mixers.mixer import own_arguments, plain

CLASS_TOKEN = "class_token"
"""The released last stage: softmax over the tokens and a class token."""

# arguments of `soft` that the entry points take beside `mixer_args`
_OF_SOFT = ("landmark_sampling", "landmark_grid", "solver", "normalize")


def stage_mixers(mixer: str | Sequence[str], stages: int) -> tuple[str, ...]:
    """Returns the name of each stage's mixer.

    Args:
        mixer: one name for all stages, or one for each. The last may be `class_token`.
        stages: how many there are.

    Returns:
        The names.

    Raises:
        InputError: a name is unknown, or there are more or fewer names than stages.
    """
    names = (mixer,) * stages if isinstance(mixer, str) else tuple(mixer)
    if len(names) != stages:
        raise InputError(f"mixer must be one name, or one for each of the {stages} stages, got {list(names)}")
    if CLASS_TOKEN in names[:-1]:
        raise InputError(f"mixer: {CLASS_TOKEN} must be that of the last stage alone, got {list(names)}")
    for name in names:
        if name != CLASS_TOKEN:
            mixer_class(name)
    return names


def stage_arguments(names: Sequence[str], mixer_args: Any) -> list[dict[str, Any]]:
    """Returns the arguments of each stage's mixer.

    Args:
        names: of the mixers.
        mixer_args: arguments for all mixers that have them; or a dict for each stage; None for none.

    Returns:
        A dict for each stage.

    Raises:
        InputError: no mixer has such an argument, or there are more or fewer dicts than stages.
    """
    if mixer_args is None or isinstance(mixer_args, Mapping):
        given = dict(mixer_args or {})
        for key in given:
            if not any(_takes(name, key) for name in names):
                raise InputError(f"mixer_args: no mixer of {', '.join(dict.fromkeys(names))} has {key!r}")
        return [{key: value for key, value in given.items() if _takes(name, key)} for name in names]
    listed = isinstance(mixer_args, Sequence) and not isinstance(mixer_args, str)
    if not listed or not all(own is None or isinstance(own, Mapping) for own in mixer_args):
        raise InputError(f"mixer_args must be a dict, or one for each of the {len(names)} stages, got {mixer_args!r}")
    arguments = [dict(own or {}) for own in mixer_args]
    if len(arguments) != len(names):
        raise InputError(f"mixer_args must be one dict, or one for each of the {len(names)} stages, got {mixer_args!r}")
    for i, (name, own) in enumerate(zip(names, arguments, strict=True)):
        if unknown := [key for key in own if not _takes(name, key)]:
            raise InputError(f"mixer_args of stage {i}: {name} has no {unknown[0]!r}")
    return arguments


def spelled_out(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of an entry point with all that says something of mixers in `mixer` and `mixer_args`.

    What stands for them: `last_stage`, `sr_ratios` (the `ratio` of each stage whose mixer has one), `value_kernels` (of
    each stage with `soft`), and the arguments of `soft`.

    Args:
        defaults: of the variant; those of mixers count where a mixer has them.
        given: by the caller.

    Returns:
        The arguments of `SoftmaxFreeTransformer`.

    Raises:
        InputError: they contradict each other, or no stage has such an argument.
    """
    args = {**defaults, **given}
    ratios, kernels = (_four(key, args.pop(key)) for key in ("sr_ratios", "value_kernels"))
    last = args.pop("last_stage", None)
    if last not in (None, "softmax", "softmax_free"):
        raise InputError(f"last_stage must be 'softmax' or 'softmax_free', got {last!r}")
    mixer = args.pop("mixer", None)
    if mixer is not None and last is not None:
        raise InputError(f"last_stage must be left out where mixer says it, got {last!r} and {mixer!r}")
    if mixer is None:
        mixer = ("soft", "soft", "soft", "soft" if last == "softmax_free" else CLASS_TOKEN)
    names = stage_mixers(mixer, 4)
    arguments = stage_arguments(names, args.pop("mixer_args", None))
    of_soft = {key: args.pop(key) for key in _OF_SOFT if key in args}
    short = stage_arguments(names, {key: value for key, value in of_soft.items() if key in given})
    for own, also in zip(arguments, short, strict=True):
        for key, value in also.items():
            if plain(own.get(key, value)) != plain(value):
                raise InputError(f"{key} is given twice: {value!r}, and in mixer_args {own[key]!r}")
        own |= also
    for name, own, ratio, kernel in zip(names, arguments, ratios, kernels, strict=True):
        usual = of_soft | {"ratio": ratio} | ({"value_kernel": kernel} if name == "soft" else {})
        for key, value in usual.items():
            if _takes(name, key):
                own.setdefault(key, value)
    return args | {"mixer": names, "mixer_args": arguments}


def _takes(name: str, key: str) -> bool:
    return name != CLASS_TOKEN and key in own_arguments(mixer_class(name))


def _four(name: str, values: Any) -> tuple[int, ...]:
    whole = isinstance(values, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in values)
    if not whole or len(values) != 4:
        raise InputError(f"{name} must have one whole number for each of the 4 stages, got {values!r}")
    return tuple(values)
