"""Training in one step inside the mixer: parity with the released code, its gradients, its limits."""

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer
from softmaxfree.mixers.ttt import turned
from tests.mixers.parity import MAX_ERROR, both_precisions, call, check_core, check_module, load


def mixer(dtype: torch.dtype = torch.float64, **own):
    return create_mixer("ttt", dim=24, num_heads=3, dtype=dtype, **own)


def with_large_weights(**own):
    layer = mixer(**own)
    for weight in (layer.w1, layer.w2, layer.w3):
        weight.data.normal_()
    return layer


def qkv(tokens: int = 42):
    return torch.randn(3, 2, 4, tokens, 8, dtype=torch.float64).unbind()


def heads_first(branches):
    """Returns what the released code makes, `(B, N, C + D)`, as heads."""
    return branches.unflatten(-1, (4, 8)).transpose(1, 2)


def inner_weights(official):
    return {"w1": official["w1"][0], "w2": official["w2"][0], "w3": official["w3"].flatten(1)}


@both_precisions
def test_core_is_the_released_one(dtype):
    tensors, grid = load("ttt")
    for key in ("q", "k", "v", "grad_q", "grad_k", "grad_v"):
        tensors[key] = torch.cat([tensors[key], tensors[f"{key}2"].flatten(2).mT[:, None]], 1)
    for key in ("out", "grad_out"):
        tensors[key] = heads_first(tensors[key])
    check_core(mixer(dtype), tensors, grid, dtype, names=("w1", "w2", "w3"), weights=inner_weights)


@both_precisions
@pytest.mark.parametrize("rope", [False, True])
def test_module_is_the_released_one(dtype, rope):
    tensors, grid = load("ttt")
    if rope:  # one result more of the same module; of the weights' gradients it has none
        tensors |= {f"module.{key}": tensors[f"module.rope.{key}"] for key in ("out", "grad_x")}
        tensors = {key: x for key, x in tensors.items() if not key.startswith("module.grad.")}
    layer = mixer(dtype, rope=rope)

    def run(x, official):
        own = inner_weights(official) | {key: official[key] for key in ("proj.weight", "proj.bias")}
        for key in ("qkv.weight", "qkv.bias"):
            q, k, v, q2, k2, v2 = official[key].split([24] * 3 + [8] * 3)
            own[key] = torch.cat([q, q2, k, k2, v, v2])
        return call(layer, own, x, grid)

    check_module(run, tensors, dtype)


def test_the_turn_is_the_released_one():
    tensors, grid = load("ttt")
    x = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    pairs = torch.view_as_complex(x.transpose(1, 2).reshape(2, 20, 12, 2))
    by = torch.view_as_complex(tensors["module.rope.rotations"].flatten(0, 1).contiguous())
    expected = torch.view_as_real(pairs * by).reshape(2, 20, 3, 8).transpose(1, 2)
    torch.testing.assert_close(turned(x, grid), expected, rtol=0, atol=MAX_ERROR)


def test_it_is_one_step_of_descent_on_the_inner_loss():
    q, k, v = qkv()
    layer = with_large_weights()
    out = layer.mix(q, k, v, [6, 7])

    def step(weight, loss, dims):
        (grad,) = torch.autograd.grad(loss, weight, retain_graph=True)
        return weight - grad / (torch.linalg.vector_norm(grad, dim=dims, keepdim=True) + 1)

    for image in range(2):
        w1, w2, w3 = (w.detach().requires_grad_() for w in (layer.w1, layer.w2, layer.w3.view(8, 1, 3, 3)))
        keys, values = k[image, :3], v[image, :3]
        loss = -((keys @ w1) * F.silu(keys @ w2) * values).sum() / 42 / 3
        new1, new2 = step(w1, loss, -2), step(w2, loss, -2)
        gated = (q[image, :3] @ new1) * F.silu(q[image, :3] @ new2)
        q2, k2, v2 = (x[image, 3].T.reshape(1, 8, 6, 7) for x in (q, k, v))
        loss = -(F.conv2d(k2, w3, padding=1, groups=8) * v2).sum() / 42 / 3
        convolved = F.conv2d(q2, step(w3, loss, (1, 2, 3)), padding=1, groups=8)
        expected = torch.cat([gated, convolved.flatten(2).mT])
        torch.testing.assert_close(out[image], expected, rtol=0, atol=MAX_ERROR)


def test_without_values_it_is_the_inner_model_as_learned():
    q, k, v = qkv()
    layer = with_large_weights()
    out = layer.mix(q, k, 0 * v, [6, 7])
    expected = (q[:, :3] @ layer.w1) * F.silu(q[:, :3] @ layer.w2)
    torch.testing.assert_close(out[:, :3], expected, rtol=0, atol=MAX_ERROR)


def test_the_first_branch_does_not_see_the_order_of_tokens_unless_it_is_told():
    q, k, v = qkv()
    order = torch.randperm(42)
    for rope in (False, True):
        layer = with_large_weights(rope=rope)
        moved = layer.mix(q, k, v, [6, 7])[:, :3, order]
        again = layer.mix(*(x[:, :, order] for x in (q, k, v)), [6, 7])[:, :3]
        assert torch.allclose(again, moved, rtol=0, atol=MAX_ERROR) != rope


def test_padding_leaves_no_trace_with_turned_tokens_and_a_class_token():
    q, k, v = qkv(43)
    layer = with_large_weights(rope=True)
    mask = torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[:, :4, :5] = True
    inside = F.pad(mask.flatten(1)[0], (1, 0), value=True)
    alone = layer.mix(*(x[:, :, inside] for x in (q, k, v)), [4, 5])
    torch.testing.assert_close(layer.mix(q, k, v, [6, 7], mask)[:, :, inside], alone, rtol=0, atol=MAX_ERROR)


def test_a_sequence_is_an_image_of_one_row():
    q, k, v = qkv()
    layer = with_large_weights(rope=True)
    torch.testing.assert_close(layer.mix(q, k, v, [42]), layer.mix(q, k, v, [1, 42]), rtol=0, atol=0)


def test_a_width_that_has_no_four_parts_cannot_be_turned():
    with pytest.raises(InputError, match="rope must be False where the width, 6, is no multiple of 4"):
        create_mixer("ttt", dim=6, num_heads=3, rope=True)
