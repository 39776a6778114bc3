"""Mixers by name, and what cannot be one."""

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import AbstractAttention, create_mixer, list_mixers, register
from softmaxfree.mixers.registry import _MIXERS


@pytest.fixture(autouse=True)
def _same_registry():
    kept = dict(_MIXERS)
    yield
    _MIXERS.clear()
    _MIXERS.update(kept)


def own(**attributes):
    """Returns a class of a mixer that gives each token its value."""
    return type("Own", (AbstractAttention,), {"mix": lambda self, q, k, v, grid, mask=None: v, **attributes})


def test_a_mixer_of_ones_own_is_found():
    cls = register(own(name="own"))
    assert "own" in list_mixers()
    assert type(create_mixer("own", dim=8, num_heads=2)) is cls
    assert register(cls) is cls
    again = own(name="own")  # as when a notebook's cell runs twice
    assert type(create_mixer("own", dim=8, num_heads=2)) is cls
    assert type(create_mixer(register(again).name, dim=8, num_heads=2)) is again


@pytest.mark.parametrize("name", ["", 5, "class_token", "soft"])
def test_a_name_that_cannot_be_is_refused(name):
    with pytest.raises(InputError, match="name of Own must be a text that no other mixer has"):
        register(own(name=name))
    assert list_mixers()


@pytest.mark.parametrize("thing", ["foo", torch.nn.Linear, 3])
def test_what_is_no_mixer_is_refused(thing):
    with pytest.raises(InputError, match="a mixer must be a subclass of AbstractMixer"):
        register(thing)


def test_an_unknown_name_or_argument_is_named():
    with pytest.raises(InputError, match="there is no 'sofd'; did you mean soft"):
        create_mixer("sofd", dim=8, num_heads=2)
    with pytest.raises(InputError, match="the mixer mala has no argument 'ratio'; it has "):
        create_mixer("mala", dim=8, num_heads=2, ratio=2)


class Powered(AbstractAttention):
    """Has an argument of its own."""

    name = "powered"

    def __init__(self, dim, num_heads, *, power=None, **common):
        super().__init__(dim, num_heads, **common)
        self.power = power

    def mix(self, q, k, v, grid, mask=None):
        return v


@pytest.mark.parametrize("value", [torch.ones(2), {1, 2}, torch.float32, float("nan"), float("inf")])
def test_an_argument_that_weights_cannot_carry_is_refused(value):
    assert Powered(8, 2, power=[1, {"a": 2.5}]).config()["power"] == [1, {"a": 2.5}]
    with pytest.raises(InputError, match="an argument of a mixer must be a finite number, a text"):
        Powered(8, 2, power=value).config()


def test_an_argument_that_is_not_kept_is_named():
    mixer = Powered(8, 2)
    del mixer.power
    with pytest.raises(InputError, match="Powered must keep its argument 'power' as an attribute of that name"):
        mixer.config()
