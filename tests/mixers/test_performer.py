"""Performer: parity with the official code, quadratic form, an unbiased estimate of the softmax kernel."""

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from softmaxfree.mixers.performer import orthogonal_features
from tests.mixers.parity import MAX_ERROR, both_precisions, check_core, load


def mixer(dtype: torch.dtype = torch.float64, **own):
    torch.manual_seed(0)
    return create_mixer("performer", dim=24, num_heads=3, dtype=dtype, **own)


@both_precisions
@pytest.mark.parametrize("kernel", ["exp", "relu"])
def test_core_is_the_official_one(kernel, dtype):
    tensors, grid = load("performer")
    layer = mixer(dtype, num_features=13, kernel=kernel, constant_maximum=True)
    layer.projection_matrix.copy_(tensors["projection_matrix"])
    check_core(layer, tensors, grid, dtype, "" if kernel == "exp" else "relu.")


def test_it_is_its_quadratic_form():
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    layer = mixer()
    w = layer.projection_matrix

    def phi(x, axes):
        x = x * 8**-0.25
        along = x @ w.T
        return torch.exp(along - x.square().sum(-1, keepdim=True) / 2 - along.amax(axes, keepdim=True)) + 1e-4

    weights = phi(q, -1) @ phi(k, (-2, -1)).transpose(-1, -2)
    expected = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7]), expected, rtol=0, atol=MAX_ERROR)


def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    rows = orthogonal_features(5000, 16).double()
    blocks = F.normalize(rows[:4992], dim=-1).view(-1, 16, 16)
    torch.testing.assert_close(blocks @ blocks.mT, torch.eye(16).double().expand_as(blocks), rtol=0, atol=1e-5)
    assert abs(rows.square().sum(-1).mean().item() / 16 - 1) < 0.02
    assert rows.mean(0).abs().max() < 0.06


def test_inner_products_of_features_estimate_the_softmax_kernel_and_better_with_more():
    x, y = (0.7 * F.normalize(torch.randn(2, 30, 8, dtype=torch.float64), dim=-1)).unbind()
    exact = torch.exp(x @ y.T)

    def error(count):
        w = orthogonal_features(count, 8).double()
        phi = [torch.exp(z @ w.T - z.square().sum(-1, keepdim=True) / 2) * count**-0.5 for z in (x, y)]
        return ((phi[0] @ phi[1].T - exact).norm() / exact.norm()).item()

    assert error(100_000) < 0.01
    few, many = (sum(error(count) for _ in range(20)) for count in (64, 1024))
    assert 2.5 < few / many < 6  # 4 by the law of large numbers


def test_close_to_softmax_attention_for_short_queries_and_keys():
    q, k, v = torch.randn(3, 2, 3, 42, 8, dtype=torch.float64).unbind()
    q, k = (0.5 * F.normalize(x, dim=-1) for x in (q, k))
    expected = F.scaled_dot_product_attention(q, k, v)
    out = mixer(num_features=20_000).mix(q, k, v, [6, 7])
    assert (out - expected).norm() / expected.norm() < 0.02


def test_directions_travel_with_the_weights():
    first = mixer()
    second = create_mixer("performer", dim=24, num_heads=3, dtype=torch.float64)
    assert not torch.equal(first.projection_matrix, second.projection_matrix)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.projection_matrix, second.projection_matrix)
    assert mixer().num_features == 16
    assert create_mixer("performer", dim=3, num_heads=3).num_features == 1


def test_an_image_of_padding_alone_is_finite_with_relu():
    x, mask = torch.randn(2, 42, 24, dtype=torch.float64), torch.ones(2, 6, 7, dtype=torch.bool)
    mask[1] = False
    assert mixer(kernel="relu")(x, [6, 7], mask).isfinite().all()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_features": 0}, "num_features must be 1 or more, got 0"),
        ({"kernel": "cos"}, "kernel must be one of exp, relu, got 'cos'"),
    ],
)
def test_bad_arguments_are_named(own, message):
    with pytest.raises(InputError, match=message):
        mixer(**own)
