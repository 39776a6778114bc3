"""Baselines: their formulas, padding, batches, what networks are refused."""

import copy

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mil import create_bag_model, list_bag_models, maps
from tests.mil.golden import MAX_BAG_EFFECT, shaken

POOLING = ["mean", "max", "instance_max", "gated_attention"]


def model(name: str, num_classes: int = 3, **own):
    torch.manual_seed(0)
    return shaken(create_bag_model(name, num_classes=num_classes, in_dim=12, **{"embed_dim": 16} | own))


def test_formulas():
    x = torch.randn(9, 12)
    mean, greatest, instance, gated = (model(name) for name in POOLING)
    h = mean.embed(x)
    torch.testing.assert_close(mean(x)[0], mean.head(h.mean(0)))
    torch.testing.assert_close(greatest(x)[0], greatest.head(greatest.embed(x).amax(0)))
    torch.testing.assert_close(instance(x)[0], instance.head(instance.embed(x)).amax(0))
    h = gated.embed(x)
    a = (gated.w(gated.v(h).tanh() * gated.u(h).sigmoid())).softmax(0)
    torch.testing.assert_close(gated(x)[0], gated.head((a * h).sum(0)))


def test_with_two_classes_the_most_positive_patch_is_the_bag():
    x, own = torch.randn(9, 12), model("instance_max", 2)
    logits = own.head(own.embed(x))
    torch.testing.assert_close(own(x)[0], logits[(logits[:, 1] - logits[:, 0]).argmax()])


@pytest.mark.parametrize("name", list_bag_models())
@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_padding_and_batch_mates_change_nothing(name, num_classes):
    own = model(name, num_classes)
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    bags = [(torch.randn(n, 12) * scale, grid[:n] * 256.0 + shift) for n, scale, shift in ((25, 1, 0), (7, 30, 999))]
    x, coords = torch.full((2, 40, 12), torch.nan), torch.full((2, 40, 2), torch.nan)
    mask = torch.zeros(2, 40, dtype=torch.uint8)
    for i, (bag, places) in enumerate(bags):
        n = len(bag)
        x[i, :n], coords[i, :n], mask[i, :n] = bag, places, 1
    out = own(x.requires_grad_(), mask, coords)
    assert out.shape == (2, num_classes)
    for i, (bag, places) in enumerate(bags):
        torch.testing.assert_close(out[i : i + 1], own(bag, coords=places), rtol=0, atol=MAX_BAG_EFFECT)
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[mask == 0].any()
    assert x.grad[0, :25].any()


@pytest.mark.parametrize("name", list_bag_models())
def test_a_constant_batch_mate_changes_nothing(name):
    own, x = model(name), torch.randn(2, 25, 12)
    x[1] = 100.0
    torch.testing.assert_close(own(x)[:1], own(x[:1]), rtol=0, atol=MAX_BAG_EFFECT)


@pytest.mark.parametrize("name", list_bag_models())
def test_one_bag_may_come_without_a_batch_and_in_half_precision(name):
    own, x = model(name), torch.randn(6, 12)
    assert torch.equal(own(x), own(x[None]))
    assert torch.equal(own(x, torch.ones(6, dtype=torch.bool)), own(x))
    assert torch.equal(own(x.half()), own(x.half().float()))
    assert own(x[:1]).isfinite().all()


@pytest.mark.parametrize("name", list_bag_models())
def test_bfloat16_autocast(name):
    own, x = model(name), torch.randn(20, 12)
    with torch.autocast("cpu", torch.bfloat16):
        logits = own(x)
    torch.testing.assert_close(logits.float(), own(x), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", [*POOLING, "bag_encoder"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_long_bag_under_autocast(name, dtype):
    own, x = model(name), torch.randn(70_000, 12)  # in float16 their number is infinite
    with torch.no_grad():
        expected = copy.deepcopy(own).double()(x.double())
        with torch.autocast("cpu", dtype):
            logits = own(x)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), expected, rtol=0, atol=5e-3)
        torch.testing.assert_close(own(x).double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(own.to(dtype)(x).double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", list_bag_models())
def test_digits(name):
    own, x = create_bag_model(name, num_classes=2, in_dim=784, embed="lenet", embed_dim=16), torch.rand(4, 784)
    own(x).sum().backward()
    assert next(own.embed.parameters()).grad.any()  # of the first convolution
    own.eval()
    with torch.no_grad():
        many = torch.rand(1030, 784)
        torch.testing.assert_close(own.embed(many)[-3:], own.embed(many[-3:]))


@pytest.mark.parametrize("name", list_bag_models())
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": torch.zeros(2, 3, 5)}, r"x must be features \(B, N, 12\) or \(N, 12\), got \(2, 3, 5\)"),
        ({"x": torch.zeros(2, 3, 12, dtype=torch.int64)}, "x must be a tensor of floats, got torch.int64"),
        ({"x": torch.zeros(2, 0, 12)}, "x must hold at least one patch in each bag, but bag 0 of the batch is empty"),
        ({"mask": torch.tensor([[1, 1, 1], [0, 0, 0]]).bool()}, "but bag 1 of the batch is empty"),
        ({"mask": [[True] * 3] * 2}, "mask must be a tensor, got 'list'"),
        ({"mask": torch.ones(2, 3)}, r"mask must be bool or uint8 \(2, 3\), got torch.float32 \(2, 3\)"),
        ({"mask": torch.tensor([[1, 1, 1], [0, 1, 1]]).bool()}, "padding is on the right"),
    ],
)
def test_bad_input_is_named(name, given, message):
    with pytest.raises(InputError, match=message):
        model(name)(**{"x": torch.zeros(2, 3, 12)} | given)


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="bag model: there is no 'transmill'; did you mean transmil"):
        create_bag_model("transmill", num_classes=2, in_dim=3)
    with pytest.raises(
        InputError, match="the network mean has no argument 'depth'; it has embed_dim, embed, embed_layers, dropout"
    ):
        create_bag_model("mean", num_classes=2, in_dim=3, depth=1)
    with pytest.raises(InputError, match="embed_layers must be left out where embed is not 'linear', got 2"):
        create_bag_model("max", num_classes=2, in_dim=784, embed="lenet", embed_layers=2)
    with pytest.raises(InputError, match="in_dim must be 784, pixels of a digit, with embed='lenet', got 3"):
        create_bag_model("mean", num_classes=2, in_dim=3, embed="lenet")
    with pytest.raises(InputError, match="embed must be 'linear', 'lenet' or a module, got 'conv'"):
        create_bag_model("mean", num_classes=2, in_dim=3, embed="conv")
    with pytest.raises(InputError, match="num_classes must be 1 or more, got 0"):
        create_bag_model("max", num_classes=0, in_dim=3)


def test_equal_greatest_values_share_a_channel_whatever_their_order():
    torch.manual_seed(0)
    net = create_bag_model("max", num_classes=2, in_dim=6, embed_dim=64).eval()
    x = torch.randn(1, 5, 6)
    with torch.no_grad():
        weights = maps.attention(net, x)
        turned = maps.attention(net, x.flip(1))
        dead = (net.embed(x)[0] == 0).all(0)
    assert dead.any()  # of ReLU: such a channel is no patch's own
    torch.testing.assert_close(weights, turned.flip(0))
