"""The shorter ways of inference are left where a module was exchanged, or somebody looks at it."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from skimage import data
from torch import nn

from softmaxfree.layers import block, embed
from softmaxfree.mixers import create_mixer
from softmaxfree.models import semantic_fpn


class Added(nn.Module):
    """As adapters do it: the weight of the layer below, and what is added to it."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        for name in ("weight", "bias", "stride", "padding", "kernel_size", "dilation", "groups", "padding_mode"):
            setattr(self, name, getattr(conv, name))
        self.out_channels = conv.out_channels

    def forward(self, x):
        return self.conv(x) + 1


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(embed, "_CPU_STRIP_BYTES", 1 << 14)
    monkeypatch.setattr(block, "_CPU_HIDDEN_BYTES", 1 << 12)
    monkeypatch.setattr(semantic_fpn, "_STRIP_BYTES", 1 << 12)


def both(module, *given):
    """What a module gives with and without gradients."""
    out = module(*given).detach()
    with torch.no_grad():
        return module(*given), out


@pytest.mark.parametrize(
    "exchanged",
    [
        Added,
        lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, padding_mode="reflect"),
        lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 2, dilation=2),
        lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding="same"),
    ],
)
def test_a_convolution_in_the_place_of_the_stem_s(exchanged, small_pieces):
    stem = embed.stem(3, 16, width=8).eval()
    stem[1].conv = exchanged(stem[1].conv)
    torch.testing.assert_close(*both(stem, torch.rand(1, 3, 96, 80)))


def test_a_hook_sees_whole_maps_of_the_stem(small_pieces):
    stem, seen = embed.stem(3, 16, width=8).eval(), []
    x = torch.rand(1, 3, 96, 80)
    expected = both(stem, x)[0]
    for part in (stem[0].conv, stem[2].bn):
        part.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    with torch.no_grad():
        torch.testing.assert_close(stem(x), expected)
    assert seen == [(1, 8, 48, 40), (1, 16, 24, 20)]


@pytest.mark.parametrize("tokens", [4, 400])
@pytest.mark.parametrize("name", ["mlp", "norm2", "mlp.fc1"])
def test_a_hook_sees_all_tokens_of_a_block(name, tokens, small_pieces):
    layer, seen = block.Block(create_mixer("softmax", dim=16, num_heads=2)).eval(), []
    layer.get_submodule(name).register_forward_hook(lambda module, given, out: seen.append(given[0].shape))
    torch.testing.assert_close(*both(layer, torch.rand(2, tokens, 16), [2, tokens // 2]))
    assert seen == [(2, tokens, 16)] * 2


def test_a_decoder_whose_finest_part_was_exchanged_or_is_seen():
    decoder = smp.decoders.fpn.decoder.FPNDecoder(
        [3, 8, 8, 8, 8, 8], pyramid_channels=32, segmentation_channels=32
    ).eval()
    with torch.no_grad():
        assert semantic_fpn.can_decode(decoder)
        handle = decoder.p2.register_forward_hook(lambda *_: None)
        assert not semantic_fpn.can_decode(decoder)
        handle.remove()
        assert semantic_fpn.can_decode(decoder)
        layers = decoder.seg_blocks[3].block[0].block
        layers[0] = Added(layers[0])
        assert not semantic_fpn.can_decode(decoder)


@pytest.mark.parametrize("norm", [lambda n: nn.BatchNorm2d(n, track_running_stats=False), lambda n: nn.BatchNorm2d(n)])
def test_a_norm_over_the_whole_map(norm, small_pieces):
    stem = embed.stem(3, 16, width=8).eval()
    stem[1].bn = norm(8).train()
    torch.testing.assert_close(*both(stem, torch.rand(1, 3, 96, 80)))


def test_a_feed_forward_part_that_mixes_tokens(small_pieces):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1, keepdim=True).expand_as(x)

    layer = block.Block(create_mixer("softmax", dim=16, num_heads=2)).eval()
    layer.mlp = Mean()
    torch.testing.assert_close(*both(layer, torch.rand(2, 400, 16), [2, 200]))


@pytest.mark.parametrize("part", ["norm", "act", "drop1", "fc2", "drop2"])
def test_a_part_of_the_feed_forward_part_that_mixes_tokens(part, small_pieces):
    class Centred(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x - x.mean(1, keepdim=True))

    layer = block.Block(create_mixer("softmax", dim=16, num_heads=2)).eval()
    setattr(layer.mlp, part, Centred(getattr(layer.mlp, part)))
    torch.testing.assert_close(*both(layer, torch.rand(2, 400, 16), [2, 200]))


def test_a_decoder_with_other_parts():
    def decoder():
        return smp.decoders.fpn.decoder.FPNDecoder([3, *[8] * 5], pyramid_channels=32, segmentation_channels=32).eval()

    with torch.no_grad():
        own = decoder()
        own.dropout.train()
        assert not semantic_fpn.can_decode(own)
        own = decoder()
        own.p2.skip_conv = nn.Identity()
        assert not semantic_fpn.can_decode(own)
        own = decoder()
        own.dropout = nn.Dropout(0.1).eval()
        assert not semantic_fpn.can_decode(own)
        own = decoder()
        own.seg_blocks[3] = nn.Sequential(own.seg_blocks[3])
        assert not semantic_fpn.can_decode(own)
        own = decoder()
        own.seg_blocks[3].block[0] = nn.Sequential(own.seg_blocks[3].block[0])
        assert not semantic_fpn.can_decode(own)
        own = decoder()
        own.seg_blocks[3].block[0].block[0].padding_mode = "reflect"
        assert not semantic_fpn.can_decode(own)
        assert semantic_fpn.can_decode(decoder())


@pytest.fixture(scope="module")
def seen_photo():
    """A network whose statistics are those of a photograph, and the photograph, larger than it learned."""
    torch.manual_seed(0)
    net = timm.create_model("soft_tiny", num_classes=0)
    x = torch.from_numpy(data.astronaut()[:, 64:448].copy()).movedim(-1, 0)[None] / 128.0 - 1
    with torch.no_grad():
        for _ in range(20):
            net(x[..., 100:324, 80:304])
    return net.eval(), x


def test_bfloat16_runs_from_block_to_block_on_a_cpu(seen_photo):
    net, x = seen_photo
    norms = {}
    for name, module in net.named_modules():
        if type(module) is nn.LayerNorm and name.startswith(("stages.0.blocks.0.norm", "stages.1.blocks.1.norm")):
            module.register_forward_hook(lambda *given, name=name: norms.update({name: given[2].dtype}))
    with torch.inference_mode():
        exact = net.forward_features(x)
        assert exact.dtype == torch.float32
        assert set(norms.values()) == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            narrow = net.forward_features(x)
    assert set(norms.values()) == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):  # with gradients, as autocast has it
        plain = net.forward_features(x)
    assert set(norms.values()) == {torch.float32}
    errors = [((out.detach().float() - exact).norm() / exact.norm()).item() for out in (narrow, plain)]
    assert 1e-3 < errors[1] < errors[0] * 1.5 < 0.05, errors
