"""What is compared: a mixer with arguments, under a label; and the ablations of the papers as lists of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from softmaxfree.arguments import require_known
from softmaxfree.errors import InputError
from softmaxfree.mixers import list_mixers, mixer_class
from softmaxfree.mixers.mixer import own_arguments
from softmaxfree.ops import Cholesky, Newton
from softmaxfree.plugins import code_of

__all__ = ["STUDIES", "Variant", "variants"]

_KERNELS = ("soft", "gaussian")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the comparison.

    Attributes:
        label: its name in tables and folders.
        mixer: of all stages.
        arguments: of the mixer.
    """

    label: str
    mixer: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def code(self) -> str:
        """A digest of the file of a mixer that another package brings, else ""."""
        return code_of(mixer_class(self.mixer))


def _plain(name: str) -> Variant:
    """Returns the mixer without what its paper adds to it; of all, `soft` alone has something on by default."""
    return Variant(name, name, {"value_kernel": 0} if name == "soft" else {})


def _landmarks(mixer: str) -> list[Variant]:
    sides = (1, 4, 6, 7, 8, 9, 16)
    return [Variant(f"{side * side} landmarks", mixer, {"ratio": 1, "landmark_grid": [side, side]}) for side in sides]


def _sampling(mixer: str) -> list[Variant]:
    ways = ("conv", "mean", "random", "first")
    return [Variant(f"landmarks by {way}", mixer, {"landmark_sampling": way}) for way in ways]


def _newton(mixer: str) -> list[Variant]:
    return [
        Variant(f"{iters} Newton steps", mixer, {"solver": Newton(iters=iters).to_dict()})
        for iters in (1, 2, 4, 6, 10, 20, 40)
    ]


def _solver(mixer: str) -> list[Variant]:
    solvers = {"Newton, 20 steps": Newton(), "Cholesky with ridge": Cholesky()}
    return [Variant(label, mixer, {"solver": solver.to_dict()}) for label, solver in solvers.items()]


def _normalize(mixer: str) -> list[Variant]:
    return [Variant("normalised" if on else "not normalised", mixer, {"normalize": on}) for on in (False, True)]


STUDIES: dict[str, tuple[str, Callable[[str], list[Variant]]]] = {
    "landmarks": ("landmark_grid", _landmarks),
    "sampling": ("landmark_sampling", _sampling),
    "newton": ("solver", _newton),
    "solver": ("solver", _solver),
    "normalize": ("normalize", _normalize),
    "kernel": ("", lambda mixer: [_plain(name) for name in _KERNELS]),
}
"""Of each study the argument of a mixer that it changes, and what it compares (SOFT, section 4.3)."""


def variants(mixers: Sequence[str] = (), study: str | None = None) -> list[Variant]:
    """Returns what is compared.

    Args:
        mixers: names; none: all, or in a study `soft`.
        study: one of `STUDIES`; None: the mixers with their own arguments.

    Returns:
        A variant for each row.

    Raises:
        InputError: there is no such mixer or study, or the mixer has nothing that the study changes.
    """
    for name in mixers:
        require_known("mixers", name, list_mixers())
    if twice := {name for name in mixers if list(mixers).count(name) > 1}:
        raise InputError(f"mixers must be different ones, {', '.join(sorted(twice))} is given twice")
    if study is None:
        return [_plain(name) for name in mixers or list_mixers()]
    if study not in STUDIES:
        raise InputError(f"study must be one of {', '.join(STUDIES)}, got {study!r}")
    if len(mixers) > 1 or (study == "kernel" and mixers and mixers[0] not in _KERNELS):
        allowed = f"{' and '.join(_KERNELS)}, and takes no other" if study == "kernel" else "one mixer"
        raise InputError(f"mixers: the study {study} is of {allowed}, got {', '.join(mixers)}")
    key, build = STUDIES[study]
    mixer = mixers[0] if mixers else "soft"
    if key and key not in own_arguments(mixer_class(mixer)):
        able = [name for name in list_mixers() if key in own_arguments(mixer_class(name))]
        told = f"these have one: {', '.join(able)}"
        raise InputError(f"mixers: {mixer} has no {key} for the study {study} to change; {told}")
    return build(mixer)
