"""Attention with mixed states of blocks: parity with the released code, the formula, its limits, its blocks."""

import itertools

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from softmaxfree.mixers.mhla import start_of_mixing
from tests.mixers.parity import MAX_ERROR, both_precisions, call, check_core, check_module, load

BLOCKS = (3, 3)


def mixer(dtype: torch.dtype = torch.float64, **own):
    return create_mixer("mhla", dim=24, num_heads=3, dtype=dtype, **own)


def qkv(tokens: int, batch: int = 2):
    return torch.randn(3, batch, 3, tokens, 8, dtype=torch.float64).unbind()


def phi(x):
    return x.relu() + 1e-6


def explicit(q, k, v, mixing, block):
    """The formula with all pairs; `block` tells that of each token."""
    weights = phi(q) @ phi(k).mT * mixing[block][:, block]
    return (weights @ v) / (weights.sum(-1, keepdim=True) + 1e-6)


def block_of(grid, blocks):
    """Returns the block of each token, row-major."""
    side = [-(-n // count) for n, count in zip(grid, blocks, strict=True)]
    return torch.tensor([y // side[0] * blocks[1] + x // side[1] for y, x in itertools.product(*map(range, grid))])


def in_blocks():
    """Returns which row-major token each one in block order is, for the grid of the golden tensors."""
    return block_of((6, 6), BLOCKS).argsort(stable=True)


@both_precisions
@pytest.mark.parametrize(("variant", "denominator"), [("", "released"), ("paper.", "formula")])
def test_core_is_the_released_one_and_the_formula(dtype, variant, denominator):
    tensors, grid = load("mhla")
    back = in_blocks().argsort()
    tensors = {key: x[:, :, back] if x.ndim == 4 and x.shape[2] == 36 else x for key, x in tensors.items()}
    layer = mixer(dtype, block_grid=BLOCKS, denominator=denominator)

    def renamed(weights):
        return {"mixing": weights["weight"]}

    check_core(layer, tensors, grid, dtype, variant, names=("weight",), weights=renamed)


@both_precisions
def test_module_is_the_released_one(dtype):
    tensors, grid = load("mhla")
    released = {"denominator": "released", "norm": True, "qk_norm": True, "value_kernel": 5}
    layer, order = mixer(dtype, block_grid=BLOCKS, **released), in_blocks()
    names = {"to_qkv": "qkv", "to_out.0": "proj", "lepe": "value_conv", "piece_attn.conv.weight": "mixing"}

    def run(x, official):
        weights = {}
        for key, value in official.items():
            for theirs, ours in names.items():
                key = key.replace(theirs, ours)
            weights[key] = value[:, :, 0, 0] if key == "mixing" else value
        out = call(layer, weights, x.flatten(1, 2)[:, order.argsort()], grid)
        return out[:, order].view_as(x)

    check_module(run, tensors, dtype)


@pytest.mark.parametrize("start", ["linear", "cos", "exp", "gaussian", "local"])
def test_the_mixing_matrix_starts_as_the_released_one(start):
    tensors, _ = load("mhla")
    ours = start_of_mixing(BLOCKS, start, sigma=1.0).double()
    torch.testing.assert_close(ours, tensors[f"init.{start}"], rtol=0, atol=1e-7)  # the released one is of float32


@pytest.mark.parametrize("grid", [(6, 6), (7, 5), (13, 11), (1, 7), (3, 2)])
def test_it_is_the_formula_with_all_pairs_on_any_grid(grid):
    q, k, v = qkv(grid[0] * grid[1])
    layer = mixer(block_grid=(3, 2))
    layer.mixing.data.uniform_(0.1, 1)
    expected = explicit(q, k, v, layer.mixing, block_of(grid, (3, 2)))
    torch.testing.assert_close(layer.mix(q, k, v, list(grid)), expected, rtol=0, atol=MAX_ERROR)


def test_a_sequence_is_cut_too():
    q, k, v = qkv(37)
    layer = mixer(block_grid=[5])
    expected = explicit(q, k, v, layer.mixing, torch.arange(37) // 8)
    torch.testing.assert_close(layer.mix(q, k, v, [37]), expected, rtol=0, atol=MAX_ERROR)
    mask = torch.arange(37) < torch.tensor([[37], [21]])
    alone = layer.mix(*(x[1:, :, :21] for x in (q, k, v)), [21])
    torch.testing.assert_close(layer.mix(q, k, v, [37], mask)[1:, :, :21], alone, rtol=0, atol=MAX_ERROR)


def test_equal_entries_make_linear_attention_and_the_unit_matrix_attention_in_each_block():
    q, k, v = qkv(36)
    layer, block = mixer(block_grid=BLOCKS), block_of((6, 6), BLOCKS)
    layer.mixing.data.fill_(1.0)
    weights = phi(q) @ phi(k).mT
    expected = (weights @ v) / (weights.sum(-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(layer.mix(q, k, v, [6, 6]), expected, rtol=0, atol=MAX_ERROR)
    layer.mixing.data.copy_(torch.eye(9))
    changed = v.clone()
    changed[:, :, block == 4] += 1
    moved = (layer.mix(q, k, changed, [6, 6]) - layer.mix(q, k, v, [6, 6])).abs().amax((0, 1, 3)) > 0.1
    assert moved.equal(block == 4)


def test_the_released_denominator_leaves_padding_out_too():
    q, k, v = qkv(42)
    layer = mixer(denominator="released")
    mask = torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[:, :4, :5] = True
    inside = mask.flatten(1)[0]
    alone = layer.mix(*(x[:, :, inside] for x in (q, k, v)), [4, 5])
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7], mask)[:, :, inside], alone, rtol=0, atol=MAX_ERROR)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"block_grid": (4, 0)}, "block_grid must be a list of 2 whole numbers, 1 or more"),
        ({"block_grid": (2, 2, 2)}, "block_grid must be a list of 2 whole numbers, 1 or more"),
        ({"block_grid": 4}, "block_grid must be a list of 2 whole numbers, 1 or more"),
        ({"start": "sine"}, "start must be one of linear, cos, exp, gaussian, local"),
        ({"denominator": "none"}, "denominator must be 'formula' or 'released'"),
        ({"norm": 1}, "norm must be True or False"),
    ],
)
def test_what_it_cannot_be_is_refused(own, message):
    with pytest.raises(InputError, match=message):
        mixer(**own)


def test_a_class_token_is_refused():
    with pytest.raises(InputError, match="mhla takes no prefix tokens"):
        mixer()(torch.randn(1, 37, 24, dtype=torch.float64), [6, 6])
