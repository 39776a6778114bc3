"""Released checkpoints, our own, and those of other models."""

import argparse

import pytest
import timm
import torch

from softmaxfree import ops
from softmaxfree.models.record import NAME
from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER
from softmaxfree.models.soft import checkpoint_filter_fn
from tests.golden_files import released_shapes, released_weights

SHAPES = released_shapes()


def depths_of(name: str) -> dict:
    return {"depths": (1, 3, 20, 4)} if name.endswith("small") else {}  # the released code's, not the paper's


@pytest.mark.parametrize("name", SHAPES)
def test_every_released_weight_has_a_place(name):
    with torch.device("meta"):
        model = timm.create_model(name, **depths_of(name))
        released = {k: torch.empty(shape) for k, shape in SHAPES[name].items()}
        converted = checkpoint_filter_fn(released, model)
        result = model.load_state_dict(converted, assign=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert sum(v.numel() for n, v in converted.items() if n != NAME) == sum(v.numel() for v in released.values())


@pytest.mark.parametrize("name", ["soft_tiny", "soft_norm_tiny"])
def test_a_released_file_loads_through_timm_and_keeps_its_solver(name, tmp_path):
    raw, ema = released_weights(name), {k: v * 2 for k, v in released_weights(name).items()}
    file = tmp_path / "SOFT_Tiny.pth"
    torch.save({"state_dict": raw, "state_dict_ema": ema, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, file)
    model = timm.create_model(name, checkpoint_path=str(file)).eval()
    torch.testing.assert_close(model.head.weight, ema["head.weight"])
    expected = RELEASED_NORMALIZED_SOLVER if name == "soft_norm_tiny" else ops.Newton()
    assert model.solver == expected

    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert again.solver == expected
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_a_released_file_as_pretrained_weights_with_other_classes_and_channels(tmp_path):
    file = tmp_path / "SOFT_Tiny.pth"
    torch.save({"state_dict": released_weights("soft_tiny")}, file)
    overlay = {"file": str(file), "num_classes": 1000}
    model = timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1)
    assert model.head.weight.shape == (5, 512)
    conv = model.stages[0].embed[0].conv.weight
    torch.testing.assert_close(conv, released_weights("soft_tiny")["patch_embed1.proj.0.weight"].sum(1, keepdim=True))


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"state_dict": released_weights("soft_tiny"), "x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        timm.create_model("soft_tiny", checkpoint_path=str(tmp_path / "evil.pth"))


def test_position_tables_follow_the_image_size():
    large, small = timm.create_model("soft_nano", img_size=64), timm.create_model("soft_nano", img_size=32)
    with pytest.warns(UserWarning, match="position tables are resampled"):
        small.load_state_dict(large.state_dict())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(small.eval()(x), large.eval()(x), rtol=1e-4, atol=1e-5)


def test_weights_load_below_a_prefix():
    class Task(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = timm.create_model("soft_tiny")
            self.scale = torch.nn.Parameter(torch.ones(1))

    released = released_weights("soft_tiny")
    Task().load_state_dict({f"model.{k}": v for k, v in released.items()} | {"scale": torch.ones(1)})


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            ("soft_nano", {}),
            ("soft_nano", {"num_classes": 7}),
            "num_classes=7 does not fit .* which has 1000 classes",
        ),
        (
            ("soft_nano", {"depths": (1, 2, 2, 1)}),
            ("soft_nano", {}),
            r"depths=\(1, 2, 2, 1\); this model has .*\(1, 1, 2, 1\)",
        ),
        (("resnet10t", {}), ("soft_nano", {}), "of another model: it holds 'conv1.0.weight'"),
        (("soft_nano", {"last_stage": "softmax_free"}), ("soft_nano", {}), "weights missing"),
    ],
)
def test_weights_that_do_not_fit_are_explained(source, target, message):
    weights = timm.create_model(source[0], **source[1]).state_dict()
    with pytest.raises(ValueError, match=message):
        timm.create_model(target[0], **target[1]).load_state_dict(weights)


def test_an_incomplete_released_file_is_named():
    weights = released_weights("soft_tiny")
    del weights["block4.1.attn.kv.bias"]
    with pytest.raises(ValueError, match=r"incomplete: 'block4.1.attn.kv.bias' is missing"):
        timm.create_model("soft_tiny").load_state_dict(weights)
