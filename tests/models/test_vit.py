"""Plain networks: parity with timm's ViT, any mixer, any size, masks, features, weights that tell what they are."""

import pytest
import timm
import timm.optim
import torch

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.errors import InputError
from tests.helpers import MAX_PADDING_EFFECT


def vit(**arguments):
    torch.manual_seed(0)
    return timm.create_model("soft_vit_tiny", **{"depth": 2, "num_classes": 5, "img_size": 96} | arguments).eval()


def photograph(*size: int) -> torch.Tensor:
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1).float()[None] / 255
    return torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)


@pytest.mark.parametrize("class_token", [True, False])
def test_with_softmax_it_is_the_vit_of_timm(class_token):
    ours = vit(mixer="softmax", class_token=class_token)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", depth=2, num_classes=5, img_size=96, act_layer="gelu_tanh", norm_layer="layernorm",
        class_token=class_token, global_pool="token" if class_token else "avg", fc_norm=False,
    ).eval()  # fmt: skip
    weights = {name: value for name, value in ours.state_dict().items() if name != "record"}
    weights = {name.replace("patch_embed.", "patch_embed.proj."): value for name, value in weights.items()}
    table = weights.pop("pos_embed.table")
    weights["pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), 1) if class_token else table
    theirs.load_state_dict(weights)
    x = photograph(96, 96)
    for block in theirs.blocks:
        block.norm1.eps = block.norm2.eps = 1e-5
    theirs.norm.eps = 1e-5
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixer", ["soft", "softmax"])
@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("size", [(96, 96), (100, 131), (33, 64)])
def test_any_size(mixer, patch_size, size):
    model = vit(mixer=mixer, patch_size=patch_size)
    x = photograph(*size)
    grid = [-(-side // patch_size) for side in size]
    assert model(x).shape == (1, 5)
    assert model.forward_features(x).shape == (1, 1 + grid[0] * grid[1], 192)
    final, maps = model.forward_intermediates(x, norm=True)
    assert [tuple(own.shape) for own in maps] == [(1, 192, *grid)] * 2
    torch.testing.assert_close(final[:, 1:], maps[-1].flatten(2).mT)
    torch.testing.assert_close(model.forward_head(final), model(x))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_an_image_in_a_padded_batch_is_the_image_alone(pool):
    model = vit(global_pool=pool)
    sizes = [(96, 128), (70, 90), (64, 33)]
    batch, mask = torch.full((3, 3, 96, 128), torch.nan), torch.zeros(3, 96, 128, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        batch[i, :, :h, :w] = photograph(h, w)[0]
        mask[i, :h, :w] = True
    logits = model(batch, mask)
    maps = model.forward_intermediates(batch, intermediates_only=True, mask=mask)
    for i, (h, w) in enumerate(sizes):
        alone = photograph(h, w)
        assert (logits[i] - model(alone)[0]).abs().max() < MAX_PADDING_EFFECT
        for own, expected in zip(maps, model.forward_intermediates(alone, intermediates_only=True), strict=True):
            y, x = expected.shape[-2:]
            assert (own[i, :, :y, :x] - expected[0]).abs().max() < MAX_PADDING_EFFECT
            assert own[i, :, y:].abs().sum() == 0


def test_features_pruning_and_groups():
    net = timm.create_model("soft_vit_tiny", features_only=True, depth=4, out_indices=(1, 3))
    assert net.feature_info.reduction() == [16, 16]
    assert [tuple(own.shape) for own in net(photograph(64, 80))] == [(1, 192, 4, 5)] * 2
    model = vit(depth=4)
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.blocks) == 2
    groups = timm.optim.param_groups_layer_decay(vit(), layer_decay=0.5)
    assert len({group["lr_scale"] for group in groups}) == 4  # stem, two blocks, head


def test_a_mixer_that_takes_no_class_token_gets_none():
    model = vit(mixer="cosformer", mixer_args={"positions": "grid"})
    assert model.cls_token is None
    assert model.global_pool == "avg"
    assert model(photograph(96, 80)).shape == (1, 5)
    assert vit(mixer="cosformer").cls_token is not None


def test_weights_tell_what_they_are_tied_to():
    trained = vit(mixer_args={"solver": "cholesky", "landmark_grid": (2, 2)})
    new = vit()
    new.load_state_dict(trained.state_dict())
    x = photograph(96, 96)
    torch.testing.assert_close(new(x), trained(x))
    assert new.landmark_grid == (2, 2)
    with pytest.raises(InputError, match="trained with normalize=False"):
        vit(mixer_args={"normalize": True}).load_state_dict(trained.state_dict())
    with pytest.raises(InputError, match="it has embed_dim=192 depth=2; this model has embed_dim=192 depth=3"):
        vit(depth=3).load_state_dict(trained.state_dict())


def test_compiles_exports_and_trains():
    model = vit()
    x = photograph(96, 80)
    height, width = (torch.export.Dim(side, min=65, max=256) for side in ("height", "width"))
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {2: height, 3: width}}).module()
    for size in ((96, 80), (70, 131)):
        y = photograph(*size)
        torch.testing.assert_close(program(y), model(y), rtol=1e-3, atol=1e-4)
    model.train().set_grad_checkpointing()
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "sof"}, "did you mean soft"),
        ({"mixer_args": {"ratioo": 2}}, "the mixer soft has no argument 'ratioo'"),
        ({"class_token": False, "global_pool": "token"}, "global_pool must be one of"),
        ({"mixer": "cosformer", "mixer_args": {"positions": "grid"}, "class_token": True}, "class_token must be False"),
        ({"patch_size": 0}, "patch_size must be 1 or more, got 0"),
        ({"num_heads": 5}, "num_heads must divide the width 192, got 5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        vit(**arguments)


def test_a_small_image_is_refused():
    with pytest.raises(InputError, match="at least 17x17 pixels"):
        vit()(torch.rand(1, 3, 16, 64))


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.47), ("small", 20.47), ("base", 79.68)])
def test_sizes(size, millions):
    model = timm.create_model(f"soft_vit_{size}", device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert model.min_img_size == 17
