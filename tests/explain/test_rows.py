"""The row of a query is that of the explicit matrix, for every mixer and for timm's softmax."""

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import softmaxfree
from softmaxfree.errors import InputError
from softmaxfree.explain import attention, explain, side_by_side
from softmaxfree.explain.capture import Captured
from softmaxfree.explain.rows import mixer_row, softmax_row
from softmaxfree.mixers import create_mixer, list_mixers, mixer_class

GRID, DIM, HEADS = (5, 7), 24, 3
WITH_MAPS = [name for name in list_mixers() if mixer_class(name).linear_in_v and mixer_class(name).mixes]
TINY = {"embed_dims": (16, 16, 24, 32), "num_heads": (2, 2, 2, 4), "depths": (1, 1, 1, 1), "num_classes": 5}


def make(name, **own):
    torch.manual_seed(0)
    mixer = create_mixer(name, dim=DIM, num_heads=HEADS, dtype=torch.float64, **own).eval()
    for parameter in mixer.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2)
    return mixer


def explicit(mixer, captured):
    """The whole matrix `(H, N, N)`: values that are 1 at one key alone, one key an image of a batch."""
    tokens = captured.q.shape[2]
    unit = torch.eye(tokens, dtype=torch.float64)[:, None, :, None].expand(-1, HEADS, -1, captured.q.shape[3])
    q, k = (x.expand(tokens, -1, -1, -1) for x in (captured.q, captured.k))
    mask = None if captured.mask is None else captured.mask.expand(tokens, -1, -1)
    with torch.no_grad():
        return (
            mixer.mix(q, q if captured.k is captured.q else k, unit, list(captured.grid), mask)
            .mean(-1)
            .permute(1, 2, 0)
        )


def captured_of(mixer, prefix=0, mask=None):
    tokens = GRID[0] * GRID[1] + prefix
    x = torch.randn(1, tokens, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        q, k, _ = mixer.project(x)
    return Captured(q, k, GRID, prefix, mask)


@pytest.mark.parametrize("name", WITH_MAPS)
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_is_that_of_the_explicit_matrix(name, prefix, masked):
    mixer = make(name)
    if prefix and not mixer.prefix:
        pytest.skip("takes no prefix tokens")
    mask = None
    if masked:
        if not mixer.masks:
            pytest.skip("takes no masks")
        mask = torch.zeros(1, *GRID, dtype=torch.bool)
        mask[:, :4, :5] = True
    captured = captured_of(mixer, prefix, mask)
    matrix = explicit(mixer, captured)
    for token in (0, prefix + 9):
        torch.testing.assert_close(mixer_row(mixer, captured, token), matrix[:, token], rtol=0, atol=1e-10)
    on_grid = matrix[:, prefix:] if mask is None else matrix[:, prefix:][:, mask.flatten()]
    torch.testing.assert_close(mixer_row(mixer, captured, None), on_grid.mean(1), rtol=0, atol=1e-10)
    if mask is not None:  # what is padding has no weight
        row = mixer_row(mixer, captured, prefix + 9)[:, prefix:]
        assert row[:, ~mask.flatten()].abs().max() <= 1e-12
        assert row[:, mask.flatten()].abs().max() > 0


@pytest.mark.parametrize("name", sorted(set(list_mixers()) - set(WITH_MAPS)))
def test_mixers_without_maps_are_refused(name):
    model = timm.create_model("soft_nano", mixer=name, **TINY)
    with pytest.raises(InputError, match=f"{name} is a mixer without maps"):
        explain(model, torch.zeros(3, 64, 64))


def test_nothing_as_large_as_the_matrix_is_made():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                if isinstance(each, torch.Tensor):
                    self.elements = max(self.elements, each.numel())
            return out

    for name in ("soft", "softmax", "elu_linear"):
        sizes = []
        for side in (32, 64):
            mixer = create_mixer(name, dim=DIM, num_heads=HEADS)
            q, k, _ = mixer.project(torch.randn(1, side**2, DIM))
            with Largest() as seen:
                mixer_row(mixer, Captured(q.detach(), k.detach(), (side, side), 0, None), 5)
            sizes.append(seen.elements)
        # of 4,096 tokens no tensor has more than the 256 landmarks for each, far less than 4,096
        assert sizes[1] <= 4.1 * max(sizes[0], 1024 * 256), (name, sizes)
        assert sizes[1] < 4096**2 / 8, (name, sizes)


def by_hand(attn, x):
    """softmax(q k^T) of timm's attention."""
    batch, tokens, _ = x.shape
    q, k, _ = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return (attn.q_norm(q) @ attn.k_norm(k).mT * attn.scale).softmax(-1)[0]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2), ("vit_medium_patch16_gap_256", 0)],
)
@pytest.mark.parametrize("fused", [True, False])
def test_softmax_of_timm(name, prefix, fused):
    torch.manual_seed(0)
    model = timm.create_model(name, depth=2, embed_dim=48, num_heads=3, img_size=(64, 96)).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
        block.attn.qkv.weight.data.mul_(20)
    image = torch.randn(1, 3, 64, 96)
    seen = []
    handle = model.blocks[1].attn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(image)
        handle.remove()
        matrix = by_hand(model.blocks[1].attn, seen[0])
    found = attention(model, image, (95, 17))
    assert found.token == prefix + 1 * 6 + 5
    assert found.prefix.shape == (3, prefix)
    row = torch.cat((found.prefix, found.weights.flatten(1)), 1)
    torch.testing.assert_close(row, matrix[:, found.token], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.row_sums, torch.ones(3))
    asked = attention(model, image, "cls")
    expected = matrix[:, 0] if prefix else matrix.mean(1)
    torch.testing.assert_close(torch.cat((asked.prefix, asked.weights.flatten(1)), 1), expected, rtol=1e-4, atol=1e-6)
    assert all(block.attn.fused_attn == fused for block in model.blocks)


def test_rotary_positions_and_masks_of_softmax_are_part_of_the_row():
    q, k = torch.randn(2, 1, 2, 6, 4).unbind(0)
    mask = torch.rand(1, 1, 1, 6) > 0.3
    row = softmax_row(Captured(q, k, (2, 3), 0, mask, 0.5), 4)
    expected = F.scaled_dot_product_attention(q, k, torch.eye(6).expand(1, 2, 6, 6), mask, scale=0.5)[0, :, 4]
    torch.testing.assert_close(row, expected)
    model = timm.create_model("vit_small_patch16_dinov3", img_size=64, depth=1)
    found = attention(model, torch.randn(3, 64, 64), (3, 50))
    assert found.prefix.shape == (6, 5)
    torch.testing.assert_close(found.row_sums, torch.ones(6))


def test_a_layer_of_softmax_that_does_not_see_all_tokens_has_no_maps():
    for name, stage in (("pvt_v2_b0", 0), ("swin_tiny_patch4_window7_224", 1)):
        with pytest.raises(InputError, match="mixer without maps"):
            explain(timm.create_model(name), torch.zeros(3, 224, 224), stage=stage)


@pytest.mark.parametrize(
    ("name", "own", "stage"),
    [
        ("davit_tiny", {"depths": (1,) * 4, "embed_dims": (32,) * 4, "num_heads": (1,) * 4}, 3),
        ("vit_dpwee_patch16_reg1_gap_256", {"img_size": 96, "depth": 1, "embed_dim": 24, "num_heads": 2}, 0),
    ],
    ids=["a window padded to 7 x 7 tokens", "the difference of two softmax"],
)
def test_a_padded_window_and_two_attentions_have_no_maps(name, own, stage):
    model = timm.create_model(name, **own)
    with pytest.raises(InputError, match="mixer without maps"):
        explain(model, torch.zeros(3, 96, 96), (50, 50), stage=stage)


def test_the_class_token_of_one_of_two_branches():
    model = timm.create_model("crossvit_tiny_240", depth=((1, 1, 0),), num_classes=2)
    found = attention(model, torch.randn(3, 240, 240), "cls", block=0)
    assert (found.token, found.prefix.shape[1], found.weights.shape[1:]) == (0, 1, (20, 20))


def test_the_class_token_of_a_pyramid():
    model = timm.create_model("soft_nano").eval()
    found = attention(model, torch.randn(3, 80, 110), "cls")
    assert found.mixer == "softmax"
    assert (found.token, found.prefix.shape[1]) == (0, 1)
    assert found.weights.shape == (6, 3, 4)
    torch.testing.assert_close(found.row_sums, torch.ones(6))


def test_it_is_a_package_and_can_be_called():
    model, image = timm.create_model("soft_nano", **TINY), torch.randn(3, 64, 96)
    torch.testing.assert_close(
        softmaxfree.explain(model, image, (3, 4)), softmaxfree.explain.explain(model, image, (3, 4))
    )
    assert "explain" in dir(softmaxfree)
    assert np.asarray(softmaxfree.explain(model, image)).shape == (64, 96)


@pytest.mark.parametrize("token", [7, None])
def test_in_half_precision_a_small_weight_is_not_lost(token):
    mixer = create_mixer("elu_linear", dim=16, num_heads=2)
    q, k = torch.randn(2, 1, 2, 150 * 150, 8, generator=torch.Generator().manual_seed(0)).half()
    exact = mixer_row(mixer, Captured(q.float(), k.float(), (150, 150), 0, None), token)
    row = mixer_row(mixer.half(), Captured(q, k, (150, 150), 0, None), token)
    assert row.dtype == torch.float32
    assert (row - exact).norm() / exact.norm() < 2e-3
    torch.testing.assert_close(row.sum(-1), torch.ones(2), rtol=0, atol=1e-3)


def test_in_inference_mode_too():
    mixer = make("soft")
    with torch.inference_mode():
        captured = captured_of(mixer)
        row = mixer_row(mixer, captured, 3)
    torch.testing.assert_close(row, explicit(mixer, captured)[:, 3], rtol=0, atol=1e-10)


def test_the_low_rank_of_a_layer_that_normalises_is_that_of_the_kernel():
    own = {
        "landmark_sampling": "mean",
        "landmark_grid": (8, 8),
        "ratio": 1,
        "solver": {"name": "eigh"},
        "value_kernel": 0,
    }
    maps = {}
    for on in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(
            "soft_vit_tiny", embed_dim=16, num_heads=2, depth=1, mixer_args={**own, "normalize": on}
        )
        maps |= side_by_side(model.eval(), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)), (5, 5))
    assert list(maps) == ["softmax", "exact Gaussian", "low rank", "low rank, before it is normalised"]
    exact, one, other = (own.weights for own in list(maps.values())[1:])
    torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
    assert (one - exact).norm() / exact.norm() < 0.02


def test_attention_of_channels_is_no_map_of_pixels():
    model = timm.create_model("xcit_nano_12_p16_224", embed_dim=64, depth=2, num_heads=4)
    with pytest.raises(InputError, match=r"XCA\) is a mixer without maps"):
        attention(model, torch.rand(3, 64, 64), (5, 5), block=0)
