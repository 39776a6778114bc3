"""Transformers of timm with their attention exchanged: every family, saved and loaded, explained, and refused."""

import copy

import pytest
import timm
import torch

from softmaxfree.errors import InputError
from softmaxfree.explain import attention
from softmaxfree.explain.landmarks import landmark_importance
from softmaxfree.models.exchange import exchange, exchanged
from softmaxfree.models.linearized import linearized_of, resample_positions
from softmaxfree.tasks.pretrained import save_pretrained

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
PYRAMID = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "num_classes": 3}
FAMILIES = {
    "vit_tiny_patch16_224": {**SMALL, "img_size": 32, "patch_size": 8, "dynamic_img_size": True},
    "deit_tiny_distilled_patch16_224": {**SMALL, "img_size": 32, "patch_size": 8},
    "vit_small_patch14_dinov2": {**SMALL, "img_size": 56},
    "vit_small_patch14_reg4_dinov2": {**SMALL, "img_size": 56},
    "vit_small_patch16_dinov3": {**SMALL, "img_size": 64},
    "eva02_tiny_patch14_224": {**SMALL, "img_size": 56},
    "vit_small_patch16_rope_mixed_224": {**SMALL, "img_size": 64},
    "pvt_v2_b0": PYRAMID,
    "pvt_v2_b2_li": PYRAMID,
}
ARGUMENTS = {"landmark_grid": (2, 2), "exact_keys": 2, "maps": True}


def teacher(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **FAMILIES[name]).eval()


def images(name: str, count: int = 2) -> torch.Tensor:
    size = FAMILIES[name].get("img_size", 64)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_with_softmax_in_place_of_softmax_nothing_changes(name):
    own = teacher(name)
    x = images(name)
    with torch.no_grad():
        expected = own(x)
        torch.testing.assert_close(exchange(copy.deepcopy(own), "softmax")(x), expected, rtol=1e-5, atol=1e-6)
        # as many landmarks and exact keys as there are tokens leave nothing out
        exact = exchange(copy.deepcopy(own), "softn", {"exact_keys": 64, "floor": 0.0})
        torch.testing.assert_close(exact(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_is_saved_and_loaded_as_a_model_of_timm(name, tmp_path):
    student = linearized_of(teacher(name), "softn", ARGUMENTS).eval()
    x = images(name)
    student(x).square().sum().backward()
    maps = [each.mixer.q_map for each in exchanged(student)]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in maps)
    for weight in maps:
        weight.data.mul_(1.5)
    save_pretrained(student, tmp_path, {"input_size": (3, *x.shape[2:])}, ())
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)
        features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(1,))
        assert features.eval()(x)[0].ndim == 4
    head = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5)
    assert head(x).shape == (2, 5)


def test_chosen_blocks_alone_are_exchanged_each_with_its_arguments():
    own = teacher("vit_tiny_patch16_224")
    student = exchange(own, "softn", [{"near": 1}], blocks=[1])
    assert [each.mixer.name for each in exchanged(student)] == ["softmax", "softn"]
    assert exchanged(student)[1].mixer.near == 1


def test_any_size_that_the_network_takes():
    student = exchange(teacher("vit_tiny_patch16_224"), "softn", ARGUMENTS)
    assert student(torch.randn(1, 3, 24, 56)).shape == (1, 3)
    assert student.forward_intermediates(torch.randn(1, 3, 24, 56), intermediates_only=True)[0].shape[2:] == (3, 7)


def test_weights_of_other_mixers_are_refused_and_what_can_change_is_taken_over():
    own = teacher("vit_tiny_patch16_224")
    student = linearized_of(copy.deepcopy(own), "softn", ARGUMENTS)
    student.blocks[0].attn.mixer.adjust(landmark_grid=(3, 3))
    other = linearized_of(copy.deepcopy(own), "softn", ARGUMENTS)
    other.load_state_dict(student.state_dict())
    assert other.blocks[0].attn.mixer.landmark_grid == [3, 3]
    wrong = linearized_of(copy.deepcopy(own), "softn", {**ARGUMENTS, "exact_keys": 3})
    with pytest.raises(RuntimeError, match="block 0 were trained with exact_keys=2, this model has 3"):
        wrong.load_state_dict(student.state_dict())


def test_its_attention_is_explained():
    own = teacher("vit_tiny_patch16_224")
    x = images("vit_tiny_patch16_224", 1)
    exact = linearized_of(copy.deepcopy(own), "softn", {"exact_keys": 16, "floor": 0.0})
    pooled = timm.create_model("vit_base_patch16_siglip_224", **FAMILIES["vit_small_patch16_dinov3"])
    assert attention(pooled, images("vit_small_patch16_dinov3", 1), (3, 5)).layer == "blocks.1.attn"
    for block in (0, 1):
        shown, expected = attention(exact, x, (3, 5), block=block), attention(own, x, (3, 5), block=block)
        assert (shown.mixer, shown.layer) == ("softn", f"blocks.{block}.attn")
        torch.testing.assert_close(shown.weights, expected.weights, rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="nothing goes through its landmarks, as all of its keys are exact"):
        landmark_importance(exact, x)
    for mixer, arguments in (("nystrom", {}), ("softn", {"exact_keys": 4})):
        found = landmark_importance(exchange(copy.deepcopy(own), mixer, arguments), x)
        torch.testing.assert_close(found.shares.sum(-1), torch.ones(2))
        assert found.places.shape == (found.shares.shape[1], 2)
    with pytest.raises(InputError, match="its keys are fewer than its queries"):
        attention(exchange(teacher("pvt_v2_b0"), "softn"), images("pvt_v2_b0", 1), (3, 5), stage=0)


@pytest.mark.slow
def test_it_is_exported_for_every_size(tmp_path):
    pytest.importorskip("skimage")
    from softmaxfree.export import export

    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    own = timm.create_model("vit_tiny_patch16_224", **{**FAMILIES["vit_tiny_patch16_224"], "depth": 1})
    student = linearized_of(own, "softn", {**ARGUMENTS, "near": 1})
    done = export(student, tmp_path / "student.pt2", config, ["a", "b", "c"])
    assert {(each.height % 8, each.width % 8) for each in done.differences} == {(0, 0)}
    fixed = linearized_of(teacher("deit_tiny_distilled_patch16_224"), "softn", ARGUMENTS)
    with pytest.raises(InputError, match="make it with dynamic_img_size=True"):
        export(fixed, tmp_path / "fixed.pt2", config, ["a", "b", "c"])


def test_positions_are_resampled_without_antialiasing():
    table = torch.randn(1, 1 + 36, 4)
    small = resample_positions(table, 1, (6, 6), (3, 3))
    cells = table[:, 1:].view(1, 6, 6, 4).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(cells, size=(3, 3), mode="bicubic", antialias=False)
    torch.testing.assert_close(small[:, 1:].view(1, 3, 3, 4).permute(0, 3, 1, 2), expected)
    torch.testing.assert_close(small[:, :1], table[:, :1])


def test_what_is_not_understood_is_named():
    with pytest.raises(InputError, match=r"model: timm.models.swin_transformer.SwinTransformer is not understood"):
        exchange(timm.create_model("swin_tiny_patch4_window7_224"), "softn")
    block = timm.models.vision_transformer.ParallelScalingBlock
    parallel = timm.create_model("vit_tiny_patch16_224", depth=1, block_fn=block)
    with pytest.raises(InputError, match=r"attention timm\.models\.vision_transformer\.ParallelScalingBlock is not"):
        exchange(parallel, "softn")
    own = teacher("vit_tiny_patch16_224")
    for mixer, why in (("soft", "projections of its own"), ("ttt", "projections of its own"), ("no", "no 'no'")):
        with pytest.raises(InputError, match=why):
            exchange(own, mixer)
    with pytest.raises(InputError, match="blocks must be different numbers from 0 to 1"):
        exchange(own, "softn", blocks=[2])
    with pytest.raises(InputError, match="mixer_args must be a dict, or one for each of 2 blocks, got 3"):
        exchange(own, "softn", [{}, {}, {}])
    with pytest.raises(InputError, match="has no argument 'ridge'"):
        exchange(own, "softn", {"ridge": 1})
    with pytest.raises(InputError, match="takes no mask"):
        exchange(teacher("vit_tiny_patch16_224"), "softn")(images("vit_tiny_patch16_224"), torch.ones(1))
    with pytest.raises(InputError, match=r"made by timm.create_model"):
        linearized_of(timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=1))
