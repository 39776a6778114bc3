"""Which mixer each stage has: names, arguments, what contradicts, and what a saved network tells of it."""

import pytest
import timm
import torch
from timm.models import save_for_hf

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.errors import InputError
from softmaxfree.ops import Cholesky, Newton


def nano(name="soft_nano", **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **{"depths": (1, 1, 1, 1)} | arguments).eval()


def names(model):
    return [group[0].name if group else None for group in model.mixer_groups]


def test_one_name_is_of_all_stages_and_the_default_is_the_released_network():
    assert names(nano()) == ["soft", "soft", "soft", None]
    assert names(nano(mixer="soft")) == names(nano(last_stage="softmax_free")) == ["soft"] * 4
    assert names(nano(mixer=("soft", "mala", "softmax", "class_token"))) == ["soft", "mala", "softmax", None]
    x = torch.rand(1, 3, 64, 64)
    same = nano(mixer=("soft", "soft", "soft", "class_token"))
    torch.testing.assert_close(same(x), nano()(x), rtol=0, atol=0)


def test_an_argument_goes_to_the_mixers_that_have_it():
    model = nano(mixer=("soft", "mala", "soft", "softmax"), mixer_args={"normalize": True, "gate": True})
    assert [getattr(mixer, "normalize", None) for mixer in model.mixers] == [True, None, True, None]
    assert [mixer.gate is not None for mixer in model.mixers] == [False, True, False, True]
    each = nano(mixer="soft", mixer_args=[{"ratio": 2}, None, {}, {"solver": "cholesky"}])
    assert [mixer.ratio for mixer in each.mixers] == [2, 2, 1, 1]
    assert each.mixers[3].solver == Cholesky()


def test_what_a_variant_is_by_default_counts_where_a_mixer_has_it():
    assert all(mixer.normalize for mixer in nano("soft_norm_tiny").mixers)
    assert names(nano("soft_norm_tiny", mixer="mala")) == ["mala"] * 4
    assert not any(mixer.normalize for mixer in nano("soft_norm_tiny", mixer_args={"normalize": False}).mixers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "mal"}, "mixer: there is no 'mal'; did you mean mala"),
        ({"mixer": ("soft", "soft")}, "one for each of the 4 stages, got"),
        ({"mixer": "class_token"}, "class_token must be that of the last stage alone"),
        ({"mixer": "mala", "last_stage": "softmax"}, "last_stage must be left out where mixer says it"),
        ({"mixer": "mala", "normalize": True}, "no mixer of mala has 'normalize'"),
        ({"mixer": "mala", "mixer_args": {"ratio": 2}}, "no mixer of mala has 'ratio'"),
        ({"mixer": "mala", "mixer_args": "rope"}, "mixer_args must be a dict, or one for each of the 4 stages, got 'r"),
        ({"mixer_args": [{}]}, "one for each of the 4 stages"),
        ({"mixer_args": [{"gate": True}, {}, {}, {}]}, "mixer_args of stage 0: soft has no 'gate'"),
        ({"solver": "cholesky", "mixer_args": {"solver": "newton"}}, "solver is given twice: 'cholesky', and in mixer"),
        ({"normalize": True, "mixer_args": {"normalize": False}}, "normalize is given twice: True"),
        ({"block_args": [{}] * 4}, "block_args must be a dict"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        nano(**arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("soft_nano", {"solver": "cholesky"}),
        ("soft_nano", {"mixer": "soft", "mixer_args": {"landmark_grid": (4, 4)}}),
        ("soft_nano", {"mixer": ("soft", "mala", "nystrom", "softmax")}),
        ("soft_norm_tiny", {"mixer": "performer"}),
        ("soft_vit_tiny", {"depth": 1}),
        ("soft_vit_tiny", {"depth": 1, "mixer": "mala", "mixer_args": {"rope": "numerator"}}),
    ],
)
def test_a_saved_network_is_made_again(name, arguments, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    if model.solver is not None:
        model.set_solver(Newton(iters=7))
    save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert again.solver == model.solver
    remade = timm.create_model(name, **model.told_in({"num_classes": 3, **arguments}))
    assert [mixer.config() for mixer in remade.mixers] == [mixer.config() for mixer in model.mixers]
