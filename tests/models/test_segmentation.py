import pytest
import timm.optim
import torch

from softmaxfree.errors import InputError
from softmaxfree.layers import embed
from softmaxfree.models import semantic_fpn
from softmaxfree.models.segmentation import Segmenter, heads
from softmaxfree.models.windows import at_scales, slide
from tests.helpers import MAX_BATCH_EFFECT, MAX_RELATIVE_ERROR

SLIM = {
    "upernet": {"hidden_size": 16, "auxiliary_channels": 16},
    "semantic_fpn": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "unet": {"decoder_channels": (16, 16, 16, 16, 16)},
}


def network(head="semantic_fpn", backbone="soft_nano", **kwargs):
    return Segmenter(head, backbone, 5, **{"head_args": SLIM.get(head), **kwargs}).eval()


def images(*sizes):
    return [torch.rand(3, *size) for size in sizes]


@pytest.mark.parametrize("head", heads())
def test_every_head_gives_logits_at_the_size_of_each_image(head):
    with torch.no_grad():
        logits = network(head)(images((128, 160), (130, 97)))  # PAN takes no less
    assert [tuple(own.shape) for own in logits] == [(5, 128, 160), (5, 130, 97)]
    assert all(own.isfinite().all() for own in logits)


@pytest.mark.parametrize("backbone", ["pvt_v2_b0", "resnet18"])
@pytest.mark.parametrize("head", ["upernet", "semantic_fpn"])
def test_other_backbones_of_timm(head, backbone):
    with torch.no_grad():
        (logits,) = network(head, backbone)(torch.rand(1, 3, 64, 64))
    assert logits.shape == (5, 64, 64)


@pytest.mark.parametrize("head", SLIM)
def test_an_image_has_the_same_logits_alone_and_in_any_batch(head):
    net = network(head)
    batch = images((64, 64), (50, 61), (96, 40), (64, 64), (33, 64))  # three are padded to 64 x 64
    with torch.no_grad():
        together = net(batch)
        for own, image in zip(together, batch, strict=True):
            (alone,) = net([image])
            assert (own - alone).abs().max() <= MAX_BATCH_EFFECT * alone.abs().max()


def test_padding_leaves_no_trace_in_the_features():
    net = network()
    small, large = images((40, 64), (96, 128))
    with torch.no_grad():
        alone, together = net._maps([small]), net._maps([small, large])
    for one, both in zip(alone[2:], together[2:], strict=True):
        y, x = one.shape[-2:]
        assert (both[0, :, :y, :x] - one[0]).abs().max() <= MAX_RELATIVE_ERROR * one.abs().max()


def test_images_are_normalised_as_the_backbone_was_trained():
    net = network()
    cfg = timm.get_pretrained_cfg("soft_nano")
    image = torch.tensor(cfg.mean).view(3, 1, 1) + torch.tensor(cfg.std).view(3, 1, 1) * torch.ones(3, 32, 48)
    seen = []
    net.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net._maps([image])
    (x,) = seen
    torch.testing.assert_close(x[..., :48], torch.ones(1, 3, 32, 48))
    assert (x[..., 48:] == 0).all()


def test_training_has_the_auxiliary_logits_of_the_third_map():
    net = network("upernet").train()
    batch = images((64, 64), (40, 96))
    logits, auxiliary = net.forward_train(batch)
    assert [own.shape for own in logits] == [own.shape for own in auxiliary]
    assert net.auxiliary_head.head.in_channels == net.backbone.feature_info.channels()[2]
    sum(own.square().mean() for own in logits + auxiliary).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert network("upernet", head_args={"use_auxiliary_head": False}).forward_train(batch)[1] == []


def test_layer_decay_spares_the_head():
    net = network()
    optimizer = timm.optim.create_optimizer_v2(net, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    names = {id(p): name for name, p in net.named_parameters()}
    scale = {names[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    stages = "encoder.model.model.stages"
    assert {value for name, value in scale.items() if name.startswith("head")} == {1.0}
    assert scale[f"{stages}.0.embed.0.conv.weight"] < scale[f"{stages}.1.blocks.0.attn.q.weight"] < 1
    assert decay[f"{stages}.0.pos_embed.table"] == 0
    with pytest.raises(ValueError, match=r"layer_decay must be null: Feature\w+ does not tell its layers"):
        timm.optim.create_optimizer_v2(network(backbone="resnet18"), "adamw", lr=1.0, layer_decay=0.5)


@pytest.mark.parametrize("size", [(50, 70), (100, 90), (33, 200)])
@pytest.mark.parametrize(("window", "stride"), [((50, 60), (30, 60)), ((64, 64), (64, 1)), ((33, 40), (10, 40))])
def test_sliding_windows_cover_the_image(size, window, stride):
    image, seen = torch.rand(2, *size), []

    def echo(crops):
        seen.extend(crops)
        return crops

    torch.testing.assert_close(slide(echo, image, window, stride, batch_size=3), image)
    assert {crop.shape[1:] for crop in seen} == {torch.Size(map(min, window, size))}


def test_overlapping_windows_are_averaged():
    count = iter(range(2))
    out = slide(
        lambda crops: [torch.full_like(crop, next(count)) for crop in crops], torch.rand(1, 4, 6), (4, 4), (4, 2)
    )
    torch.testing.assert_close(out[0], torch.tensor([0, 0, 0.5, 0.5, 1, 1]).expand(4, 6))


def test_one_window_is_the_whole_image():
    net = network()
    (image,) = images((64, 40))
    with torch.no_grad():
        torch.testing.assert_close(slide(net, image), net([image])[0])


def test_probabilities_are_averaged_over_scales():
    photos = [torch.rand(3, 40, 50), torch.rand(3, 33, 64)]
    seen = []

    def network(resized):
        seen.append([tuple(image.shape) for image in resized])
        own = 2.0 if len(seen) == 1 else -1.0
        return [torch.stack([torch.zeros(image.shape[1:]), torch.full(image.shape[1:], own)]) for image in resized]

    out = at_scales(network, photos, [1.0, 1.5])
    assert seen == [[(3, 40, 50), (3, 33, 64)], [(3, 60, 75), (3, 50, 96)]]
    expected = (torch.tensor([0.0, 2.0]).softmax(0) + torch.tensor([0.0, -1.0]).softmax(0)) / 2
    for logits, image in zip(out, photos, strict=True):
        torch.testing.assert_close(logits.exp(), expected[:, None, None].expand(2, *image.shape[1:]))


def test_one_scale_changes_nothing():
    net, photos = network(), images((64, 40), (50, 70))
    with torch.no_grad():
        for a, b in zip(at_scales(net, photos, [1.0]), net(photos), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("scales", [[], [1.0, 0.0], [-1.0]])
def test_scales_must_be_ratios(scales):
    with pytest.raises(ValueError, match=r"scales must be positive ratios, at least one, got \["):
        at_scales(list, [torch.rand(3, 64, 64)], scales)


@pytest.mark.parametrize("stride", [(0, 32), (32, 65)])
def test_windows_must_not_leave_gaps(stride):
    with pytest.raises(ValueError, match=r"stride must be from 1 to the window's side, \(64, 64\)"):
        slide(list, torch.rand(3, 128, 128), (64, 64), stride)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "upernett"}, r"head: there is no head 'upernett'; did you mean upernet"),
        ({"head": "mask"}, r"no head 'mask'; there are upernet, semantic_fpn, unet"),
        ({"backbone": "soft_nanno"}, r"name: timm has no model 'soft_nanno'; did you mean soft_nano"),
        ({"head": "upernet", "head_args": {"hiden_size": 8}}, r"model_args or head_args .*'hiden_size'"),
        ({"head": "unet", "head_args": {"decoder_chanels": 8}}, r"model_args or head_args .*'decoder_chanels'"),
        ({"model_args": {"drop_pathh": 0.1}}, r"model_args or head_args .*'drop_pathh'"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.rand(3, 31, 64), r"images\[1\] must be at least 32x32 pixels, got \(31, 64\)"),
        (torch.rand(1, 64, 64), r"images\[1\] must be float \(3, height, width\), got torch.float32 \(1, 64, 64\)"),
        (torch.ones(3, 64, 64).byte(), r"images\[1\] must be float .*, got torch.uint8"),
    ],
)
def test_bad_images(wrong, message):
    with pytest.raises(ValueError, match=message):
        network().forward_train([torch.rand(3, 64, 64), wrong])


def test_no_images():
    net = network()
    assert net([]) == []
    with pytest.raises(ValueError, match=r"images must hold at least one image"):
        net.forward_train([])


@pytest.mark.parametrize("size", [(160, 96), (150, 101)])  # the second is padded, and so has a mask
@pytest.mark.parametrize("policy", ["add", "cat"])
def test_strips_change_nothing(monkeypatch, size, policy):
    net = network(head_args={**SLIM["semantic_fpn"], "decoder_merge_policy": policy})
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    (image,) = images(size)
    (whole,) = net([image])  # with a graph, and so without strips
    for strip_bytes in (1 << 12, 1 << 15):
        monkeypatch.setattr(embed, "_CPU_STRIP_BYTES", strip_bytes)
        monkeypatch.setattr(semantic_fpn, "_STRIP_BYTES", strip_bytes)
        with torch.no_grad():
            (strips,) = net([image])
        assert (strips - whole).abs().max() <= MAX_RELATIVE_ERROR * whole.abs().max()


@pytest.mark.parametrize("head", ["upernet", "semantic_fpn", "unet"])
def test_classes_are_those_of_the_largest_logits(head):
    net = network(head)
    (image,) = images((75, 130))
    (last,) = (module for module in net.head.modules() if getattr(module, "out_channels", 0) == 5)
    with torch.no_grad():
        last.bias -= net([image])[0].mean((1, 2))  # else an untrained network may tell a single class
        logits, windows = net([image])[0], slide(net, image, (64, 64), (40, 50))
    classes = net.predict_classes(image)
    assert classes.dtype == torch.uint8
    assert len(classes.unique()) > 1
    assert torch.equal(classes.long(), logits.argmax(0))
    assert torch.equal(net.predict_classes(image, (64, 64), (40, 50)).long(), windows.argmax(0))
    whole_numbers = (image * 255).round().byte()
    assert torch.equal(net.predict_classes(whole_numbers), net.predict_classes(whole_numbers / 255))


@pytest.mark.parametrize("part", ["head", "head.0", "head.1", "head.1.0"])
def test_hooks_of_the_head_count(part):
    net, (image,) = network(), images((70, 93))
    with torch.no_grad():
        (plain,) = net([image])
        net.get_submodule(part).register_forward_hook(lambda module, given, out: out - 1)
        (hooked,) = net([image])
        assert not torch.equal(hooked, plain)
        torch.testing.assert_close(net.predict_classes(image).long(), hooked.argmax(0))
    torch.testing.assert_close(hooked, net([image])[0], rtol=1e-4, atol=1e-5)  # with a graph, all is as it is written


@pytest.mark.parametrize("activation", ["softmax2d", "tanh", "sigmoid"])
@pytest.mark.parametrize("head", ["semantic_fpn", "unet"])
def test_classes_of_a_head_with_an_activation(head, activation):
    net, (image,) = network(head, head_args={**SLIM[head], "activation": activation}), images((64, 96))
    with torch.no_grad():
        assert (net.predict_classes(image) == net([image])[0].argmax(0)).float().mean() > 0.999


def test_last_layers_that_were_exchanged_or_added():
    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    (image,) = images((64, 96))
    net = network()
    with torch.no_grad():
        (plain,) = net([image])
        net.head[1] = Doubled(net.head[1])
        torch.testing.assert_close(net([image])[0], 2 * plain, rtol=1e-4, atol=1e-5)
        net.head.append(torch.nn.Conv2d(5, 3, 1))
        (logits,) = net([image])
        assert logits.shape == (3, 64, 96)
        assert torch.equal(net.predict_classes(image).long(), logits.argmax(0))
        net = network()
        net.head[1].append(torch.nn.Conv2d(5, 3, 1))
        assert torch.equal(net.predict_classes(image).long(), net([image])[0].argmax(0))


def test_many_classes_are_told_in_wider_numbers():
    net = Segmenter("semantic_fpn", "soft_nano", 300, head_args=SLIM["semantic_fpn"]).eval()
    (image,) = images((64, 64))
    with torch.no_grad():
        assert torch.equal(net.predict_classes(image).long(), net([image])[0].argmax(0))


def test_classes_need_a_network_that_does_not_train():
    with pytest.raises(InputError, match="call eval"):
        network().train().predict_classes(torch.rand(3, 64, 64))
