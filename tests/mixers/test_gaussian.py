"""Exact Gaussian attention: its definition, and that SOFT with a landmark at each token is the same."""

import pytest
import torch

from softmaxfree import ops
from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from tests.mixers.parity import MAX_ERROR
from tests.mixers.switches import assert_switches_keep_the_contract


def mixer(**own):
    return create_mixer("gaussian", dim=24, num_heads=3, dtype=torch.float64, **own)


@pytest.mark.parametrize("tied", [True, False])
def test_it_is_its_definition(tied):
    layer, x = mixer(tied=tied), torch.randn(2, 42, 24, dtype=torch.float64)
    projections = (layer.q, layer.k or layer.q, layer.v)
    q, k, v = (project(x).view(2, 42, 3, 8).transpose(1, 2) for project in projections)
    kernel = torch.exp(-(q.unsqueeze(3) - k.unsqueeze(2)).square().sum(-1) / (2 * 8**0.5))
    expected = layer.proj((kernel @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, [6, 7]), expected, rtol=0, atol=MAX_ERROR)


def test_soft_with_a_landmark_at_each_token_is_the_same():
    soft = create_mixer(
        "soft",
        dim=24,
        num_heads=3,
        value_kernel=0,
        landmark_sampling="mean",
        solver=ops.Newton(iters=40, ridge=0.0),
        dtype=torch.float64,
    )
    layer = mixer()
    layer.load_state_dict(soft.state_dict())
    x = 6 * torch.randn(2, 42, 24, dtype=torch.float64)  # far apart, so that the kernel matrix is well conditioned
    torch.testing.assert_close(soft(x, [6, 7]), layer(x, [6, 7]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("tied", [True, False])
def test_averaged_sums_do_not_grow_with_the_tokens(tied):
    layer, x = mixer(tied=tied, averaged=True), torch.randn(1, 10, 24, dtype=torch.float64)
    once, plain = layer(x, [10]), mixer(tied=tied)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close((plain(x, [10]) - plain.proj.bias) / 10, once - layer.proj.bias, rtol=0, atol=1e-14)
    torch.testing.assert_close(layer(x.repeat(1, 3, 1), [30])[:, :10], once, rtol=0, atol=1e-14)
    assert layer.config()["averaged"] is True
    assert_switches_keep_the_contract("gaussian", tied=tied, averaged=True)


def test_tied_means_one_projection():
    layer = mixer()
    q, k, _ = layer.project(torch.randn(1, 42, 24, dtype=torch.float64))
    assert q is k
    assert not any(name.startswith("k.") for name in layer.state_dict())
    with pytest.raises(InputError, match="tied must be True or False, got 1"):
        mixer(tied=1)
