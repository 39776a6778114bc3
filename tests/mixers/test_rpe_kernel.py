"""Kernel attention with relative positions: parity with the formula, its limits, its table on other grids."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from tests.mixers.parity import MAX_ERROR, both_precisions, check_core, load


def mixer(dtype: torch.dtype = torch.float64, **own):
    layer = create_mixer("rpe_kernel", dim=24, num_heads=3, dtype=dtype, **own)
    layer.bias.data.normal_()
    return layer


def qkv(tokens: int):
    return torch.randn(3, 2, 3, tokens, 8, dtype=torch.float64).unbind()


def pairs(layer, q, k):
    """Products of features of all pairs."""

    def phi(x):
        return torch.exp(F.normalize(x, dim=-1) @ layer.projection_matrix.T - 0.5) * layer.num_features**-0.5

    return phi(q) @ phi(k).mT


def normalised(weights):
    return weights / weights.sum(-1, keepdim=True)


def bias_of_pairs(table, grid):
    """Returns the entry of each pair `(H, N, N)`; the table has the offsets of the grid."""
    cells = torch.tensor(list(itertools.product(*map(range, grid))))
    offset = cells[None] - cells[:, None] + torch.tensor(grid) - 1
    return table[:, offset[..., 0], offset[..., 1]]


@both_precisions
def test_core_is_the_formula(dtype):
    tensors, grid = load("rpe_kernel")
    layer = mixer(dtype, num_features=13, bias_grid=grid)
    layer.projection_matrix.copy_(tensors["projection_matrix"])
    check_core(layer, tensors, grid, dtype, names=("bias",))


@pytest.mark.parametrize("grid", [(4, 5), (1, 7), (8, 3), (1, 1)])
def test_it_is_its_form_with_all_pairs(grid):
    q, k, v = qkv(grid[0] * grid[1])
    layer = mixer(bias_grid=grid)
    weights = normalised(pairs(layer, q, k) * bias_of_pairs(layer.bias, grid).exp())
    torch.testing.assert_close(layer.mix(q, k, v, list(grid)), weights @ v, rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize("grid", [(6, 7), (2, 9), (1, 4), (20, 3)])
def test_on_another_grid_the_table_is_resampled_from_end_to_end(grid):
    q, k, v = qkv(grid[0] * grid[1])
    layer = mixer(bias_grid=(4, 5))
    table = layer.bias
    if grid[0] == 1:
        table = table[:, 3:4]
    sides = [2 * n - 1 for n in grid]
    table = F.interpolate(table[None], size=sides, mode="bilinear", align_corners=True)[0]
    weights = normalised(pairs(layer, q, k) * bias_of_pairs(table, grid).exp())
    torch.testing.assert_close(layer.mix(q, k, v, list(grid)), weights @ v, rtol=0, atol=MAX_ERROR)


def test_without_a_bias_it_is_the_kernel_alone():
    q, k, v = qkv(42)
    layer = mixer()
    layer.bias.data.fill_(0.3)  # any number: it cancels
    expected = normalised(pairs(layer, q, k)) @ v
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7]), expected, rtol=0, atol=MAX_ERROR)


def test_with_many_features_and_no_bias_it_comes_near_softmax():
    q, k, v = qkv(9)
    layer = mixer(num_features=8000)
    layer.bias.data.zero_()
    softmax = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v
    assert (layer.mix(q, k, v, [3, 3]) - softmax).norm() < 0.05 * softmax.norm()


def test_where_the_bias_forbids_all_other_offsets_a_token_gets_its_own_value():
    q, k, v = qkv(42)
    layer = mixer(bias_grid=(6, 7))
    layer.bias.data.fill_(-60)
    layer.bias.data[:, 5, 6] = 0
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7]), v, rtol=0, atol=MAX_ERROR)


def test_a_sequence_is_a_grid_of_one_row():
    q, k, v = qkv(37)
    layer = mixer()
    torch.testing.assert_close(layer.mix(q, k, v, [37]), layer.mix(q, k, v, [1, 37]), rtol=0, atol=0)
    mask = torch.arange(37) < torch.tensor([[37], [21]])
    alone = layer.mix(*(x[1:, :, :21] for x in (q, k, v)), [21])
    torch.testing.assert_close(layer.mix(q, k, v, [37], mask)[1:, :, :21], alone, rtol=0, atol=MAX_ERROR)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(InputError, match="num_features must be 1 or more, got 0"):
        mixer(num_features=0)
    with pytest.raises(InputError, match="bias_grid must be a list of 2 whole numbers, 1 or more"):
        mixer(bias_grid=(3,))
    with pytest.raises(InputError, match="rpe_kernel takes no prefix tokens"):
        mixer()(torch.randn(1, 37, 24, dtype=torch.float64), [6, 6])
