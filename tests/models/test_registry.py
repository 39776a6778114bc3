"""What holds for every registered model, on the meta device, and for each family with numbers."""

import pytest
import timm
import timm.optim
import torch

import softmaxfree  # noqa: F401  registers the models
from tests.helpers import MAX_BATCH_EFFECT

NAMES = timm.list_models("soft_*")
PYRAMIDS = [name for name in NAMES if "vit" not in name]
PARAMETERS = {"tiny": 13.07, "small": 24.11, "medium": 45.81, "large": 64.70, "huge": 87.11}


def test_names():
    sizes = ("tiny", "small", "medium", "large", "huge")
    pyramids = {"soft_nano", *(f"soft_{s}" for s in sizes), *(f"soft_norm_{s}" for s in sizes)}
    plain = {f"soft_vit_{s}" for s in ("tiny", "small", "base")}
    assert set(NAMES) == pyramids | plain
    assert set(timm.list_models(module="soft")) == pyramids
    assert set(timm.list_models(module="vit")) >= plain
    published = ("soft_norm_large", "soft_norm_medium", "soft_norm_small", "soft_norm_tiny", "soft_tiny")
    assert timm.list_models("soft_*", pretrained=True) == [f"{name}.fudan_in1k" for name in published]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith("huge") else ()) for name in PYRAMIDS]
)
def test_shapes(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=11).eval()
        size = model.default_cfg["input_size"]
        x = torch.empty(2, *size)
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, *model.default_cfg["pool_size"])
        assert model(x).shape == (2, 11)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        network = timm.create_model(name, features_only=True)
        maps = network(torch.empty(1, 3, 97, 64))
        assert network.feature_info.reduction() == [4, 8, 16, 32]
        assert [m.shape[1] for m in maps] == network.feature_info.channels()
        assert [tuple(m.shape[2:]) for m in maps] == [(25, 16), (13, 8), (7, 4), (4, 2)]
    if name != "soft_nano":
        count = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
        assert round(count / 1e6, 2) == PARAMETERS[name.split("_")[-1]]


@pytest.mark.parametrize("name", ["soft_tiny", "soft_norm_tiny", "soft_nano"])
def test_an_images_logits_do_not_depend_on_its_batch(name):
    model = timm.create_model(name).eval()
    x = torch.randn(3, *model.default_cfg["input_size"])
    x[1] = 0.3  # a constant image
    with torch.no_grad():
        alone = torch.cat([model(image) for image in x.split(1)])
        for batch in (x, x.flip(0).clone(), x[1:]):
            order = [next(i for i in range(3) if torch.equal(x[i], image)) for image in batch]
            error = (model(batch) - alone[order]).abs().amax(1) / alone[order].abs().amax(1)
            assert error.max() <= MAX_BATCH_EFFECT


@pytest.mark.parametrize("name", ["soft_nano", "soft_norm_tiny"])
def test_head_of_features_is_forward(name):
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 64, 96)
    features = model.forward_features(x)
    torch.testing.assert_close(model.forward_head(features), model(x))
    with torch.no_grad():
        tokens = model.stages[:-1](x)
        last = model.stages[-1]
        last.center = False
        plain = last(tokens)
    # centring only moves the map by a constant
    shift = features - plain
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(29, 29), (29, 61), (50, 33), (97, 130)])
@pytest.mark.parametrize("name", ["soft_tiny", "soft_norm_tiny"])
def test_any_size_from_the_minimum_up(name, size):
    model = timm.create_model(name, num_classes=3)
    assert model.min_img_size == 29
    model(torch.randn(2, 3, *size)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_minimum_is_where_every_stage_has_a_landmark():
    assert timm.create_model("soft_nano", device="meta").min_img_size == 13
    assert timm.create_model("soft_nano", sr_ratios=(1, 1, 4, 2), device="meta").min_img_size == 49
    model = timm.create_model("soft_nano", sr_ratios=(1, 1, 4, 2), last_stage="softmax_free")
    assert model.min_img_size == 49
    assert model(torch.randn(2, 3, 49, 49)).shape == (2, 1000)
    with pytest.raises(ValueError, match=r"at least 49x49 pixels, got \(49, 48\)"):
        model(torch.randn(1, 3, 49, 48))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["soft_nano", "soft_norm_tiny"])
def test_hard_images_stay_finite_under_autocast_and_in_half(name, dtype):
    model = timm.create_model(name, num_classes=5)
    x = torch.randn(3, 3, 64, 64)
    x[0] = 0.5
    x[1] *= 1e4
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(x).float().square().mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    if dtype != torch.float32:
        assert model.to(dtype).eval()(x[:1].to(dtype)).isfinite().all()


def test_empty_batch():
    assert timm.create_model("soft_nano").eval()(torch.randn(0, 3, 64, 64)).shape == (0, 1000)


def test_budget_leaves_256_as_released_and_bounds_beyond():
    capped, free = timm.create_model("soft_nano"), timm.create_model("soft_nano", landmark_grid="unbounded")
    tiny = timm.create_model("soft_tiny", device="meta")
    assert [s.blocks[0].attn.landmarks.max_grid for s in tiny.stages[:3]] == [[8, 8]] * 3  # 256 / 4 / 8
    with pytest.warns(UserWarning, match="set_landmark_grid"):  # that of the weights is used
        free.load_state_dict(capped.state_dict())
    assert free.landmark_grid == (8, 8)
    free.set_landmark_grid("unbounded")
    for size, same in (((128, 96), True), ((160, 96), False)):  # nano samples at half the stride
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert torch.equal(capped.eval()(x), free.eval()(x)) == same


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(embed_dims=(32, 64, 128)), "embed_dims must have one entry for each of the 4 stages"),
        (
            dict(num_heads=(1, 3, 4, 6)),
            r"num_heads must divide embed_dims in every stage, got \(1, 3, 4, 6\)",
        ),
        (dict(depths=(1, 0, 1, 1)), "depths must be 1 or more"),
        (dict(depths=(1.5, 1, 1, 1)), r"depths must be a whole number for each stage, got \(1.5, 1, 1, 1\)"),
        (dict(num_heads=1), "num_heads must be a whole number for each stage, got 1"),
        (dict(num_classes=2.5), "num_classes must be a whole number, 0 or more, got 2.5"),
        (dict(img_size="a"), "img_size must be a list of 2 whole numbers, 1 or more, got 'a'"),
        (dict(drop_rate=2), r"drop_rate must be in \[0, 1\), got 2"),
        (dict(last_stage="none"), "last_stage must be 'softmax' or 'softmax_free', got 'none'"),
        (dict(landmark_sampling="conf"), "landmark_sampling must be one of"),
        (dict(global_pool="max"), "global_pool must be one of"),
        (dict(last_stage="softmax_free", global_pool="token"), r"must be one of \('avg', ''\) for this last stage"),
        (dict(solver="qr"), "solver 'qr' is not one of newton, cholesky, eigh"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("soft_nano", **kwargs)


def test_wrong_input_is_named():
    model = timm.create_model("soft_nano", in_chans=4)
    with pytest.raises(ValueError, match=r"x must be \(B, 4, height, width\), got \(1, 3, 64, 64\)"):
        model(torch.randn(1, 3, 64, 64))
