"""The control that mixes nothing: parity with the formula, and that it mixes nothing."""

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer, mixer_class
from tests.mixers.parity import assert_near, both_precisions, call, load


@both_precisions
@pytest.mark.parametrize("act", ["gelu", "silu", "relu"])
def test_it_is_the_formula(dtype, act):
    tensors, grid = load("activator")
    layer = create_mixer("activator", dim=24, num_heads=1, hidden_ratio=10 / 24, act=act, dtype=dtype)
    names = ("x", *(f"{kind}_{part}" for part in ("gate", "value", "out") for kind in ("w", "b")))
    leaves = {key: tensors[key].to(dtype).requires_grad_() for key in names}
    weights = {
        "glu.weight": torch.cat([leaves["w_gate"], leaves["w_value"]]),
        "glu.bias": torch.cat([leaves["b_gate"], leaves["b_value"]]),
        "proj.weight": leaves["w_out"],
        "proj.bias": leaves["b_out"],
    }
    out = call(layer, weights, leaves["x"], grid)
    variant = "" if act == "gelu" else f"{act}."
    assert_near(out.detach(), tensors[f"{variant}out"], "out")
    grads = torch.autograd.grad(out, list(leaves.values()), tensors["grad_out"].to(dtype))
    for key, grad in zip(leaves, grads, strict=True):
        assert_near(grad, tensors[f"{variant}grad_{key}"], f"grad_{key}")


def test_it_says_that_it_mixes_nothing_and_does_not():
    assert not mixer_class("activator").mixes
    assert mixer_class("softmax").mixes
    layer = create_mixer("activator", dim=8, num_heads=2, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: layer(x[None], [2, 3])[0])(torch.randn(6, 8, dtype=torch.float64))
    others = ~torch.eye(6, dtype=torch.bool)
    blocks = jacobian.transpose(1, 2)
    assert blocks[others].abs().max() == 0
    assert blocks[~others].abs().max() > 0


def test_what_it_cannot_be_is_refused():
    with pytest.raises(InputError, match="act must be one of gelu, silu, relu, got 'tanh'"):
        create_mixer("activator", dim=8, num_heads=2, act="tanh")
    with pytest.raises(InputError, match="hidden_ratio must be enough for one hidden feature of 4"):
        create_mixer("activator", dim=8, num_heads=2, hidden_ratio=0.1)
