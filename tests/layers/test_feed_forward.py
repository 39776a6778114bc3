"""Feed-forward parts: kernel features in place of a layer, the activation with powers, and both in a network."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.activations import GELUTanh
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from softmaxfree.errors import InputError
from softmaxfree.layers import Block, KernelMlp, PolyNorm, stem
from softmaxfree.layers.feed_forward import FusedMlp, feed_forward
from softmaxfree.layers.linear import exchange_linear
from softmaxfree.mixers import create_mixer
from softmaxfree.ops import linear as ops_linear
from tests import golden_files

SMALL = {"num_classes": 3, "depths": (1, 1, 1, 1), "mixer": "soft"}


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_kernel_features_are_the_released_ones(dtype, error):
    golden, _ = golden_files.load("mixers/snnk")
    golden = {key: value.to(dtype) for key, value in golden.items()}
    layer = KernelMlp(24, 10, 13, dtype=dtype)
    layer.projection_matrix.copy_(golden["projection_matrix"])
    torch.testing.assert_close(layer.features(golden["W0"]), golden["weights_init"], rtol=0, atol=error)
    layer.weight.data.copy_(golden["weights"])
    layer.fc2 = torch.nn.Identity()  # theirs has none
    x = golden["x"].requires_grad_()
    out = layer(x)
    out.backward(golden["grad_out"])
    for ours, key in ((out, "out"), (x.grad, "grad_x"), (layer.weight.grad, "grad_weights")):
        assert (ours - golden[key]).abs().max() <= error * max(1, golden[key].abs().max()), key


def test_the_mean_product_of_features_is_the_arc_cosine_kernel():
    layer = KernelMlp(6, 4, 400_000, dtype=torch.float64)
    x, w = torch.randn(2, 6, dtype=torch.float64)
    angle = torch.acos(torch.cosine_similarity(x, w, 0))
    kernel = x.norm() * w.norm() / (2 * torch.pi) * (angle.sin() + (torch.pi - angle) * angle.cos())
    torch.testing.assert_close(layer.features(x) @ layer.features(w), kernel, rtol=0.02, atol=0.01)
    torch.testing.assert_close(layer.features(3 * x), 3 * layer.features(x))


def test_the_fixed_features_travel_with_the_weights():
    first, second = KernelMlp(6, 4, 5), KernelMlp(6, 4, 5)
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 6)
    torch.testing.assert_close(second(x), first(x), rtol=0, atol=0)


def test_polynorm_is_a_polynomial_of_normalised_powers():
    x = torch.randn(5, 16, dtype=torch.float64)
    layer = PolyNorm(dtype=torch.float64)
    layer.weight.data = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    layer.bias.data.fill_(0.25)
    expected = sum(
        weight * x**power / (x ** (2 * power)).mean(-1, keepdim=True).add(1e-6).sqrt()
        for weight, power in zip((0.5, -2.0, 3.0), (3, 2, 1), strict=True)
    )
    torch.testing.assert_close(layer(x), expected + 0.25, rtol=0, atol=1e-12)


def test_polynorm_of_one_power_is_rms_norm_and_length_hardly_counts():
    x = torch.randn(5, 16, dtype=torch.float64)
    layer = PolyNorm(dtype=torch.float64)
    torch.testing.assert_close(layer(70 * x), layer(x), rtol=0, atol=1e-4)
    layer.weight.data = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.nn.functional.rms_norm(x, [16], eps=1e-6), rtol=0, atol=1e-12)


def test_polynorm_stays_finite_in_half_precision():
    x = 100 * torch.randn(5, 16)
    half = PolyNorm(dtype=torch.float16)(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), PolyNorm()(x), rtol=0, atol=5e-3)


@pytest.mark.parametrize("own", [{"mlp": "snnk", "num_features": 9}, {"act": "polynorm"}, {"act": "relu"}])
def test_a_block_of_it_in_training_and_a_few_tokens_at_a_time(own, monkeypatch):
    block = Block(create_mixer("softmax", dim=12, num_heads=3), **own)
    x = torch.randn(2, 20, 12)
    trained = block(x, [4, 5])
    monkeypatch.setattr("softmaxfree.layers.block._CPU_HIDDEN_BYTES", 1000)
    with torch.no_grad():
        torch.testing.assert_close(block.eval()(x, [4, 5]), trained)


@pytest.mark.parametrize(
    "own",
    [
        {"block_args": {"mlp": "snnk", "num_features": 16}},
        {"block_args": {"act": "polynorm", "mlp_ratio": 2.0}},
        {"stem_norm": "evonorms0"},
        {"stem_norm": "evonormb0"},
        {"contrast_window": 9, "stem_stride": 8},
    ],
)
def test_a_network_of_it_trains_and_its_weights_load(own):
    net = timm.create_model("soft_nano", **SMALL, **own)
    x = torch.rand(2, 3, 40, 40)
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    again = timm.create_model("soft_nano", **SMALL, **own).eval()
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(x), net.eval()(x), rtol=0, atol=0)
    decaying = " ".join(group_of_decay(net))
    assert "mlp.fc2.weight" in decaying
    assert "act.weight" not in decaying


def group_of_decay(net):
    """Returns the names of the weights that decay."""
    decays = param_groups_weight_decay(net, 0.1, net.no_weight_decay())[1]["params"]
    return [name for name, weight in net.named_parameters() if any(weight is other for other in decays)]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"block_args": {"act": "relu"}}, "block_args"),
        ({"stem_norm": "evonorms1"}, "stem_norm"),
    ],
)
def test_weights_of_another_function_are_refused(own, message):
    net = timm.create_model("soft_nano", **SMALL, stem_norm="evonorms2" if "stem_norm" in own else "batchnorm")
    other = timm.create_model("soft_nano", **SMALL, **own)
    with pytest.raises(InputError, match=f"the weights were trained with {message}="):
        other.load_state_dict(net.state_dict())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"block_args": {"atc": "relu"}}, r"block_args: there is no 'atc'; did you mean act\?"),
        ({"block_args": {"act": "polynrm"}}, r"act: there is no 'polynrm'; did you mean polynorm\?"),
        ({"block_args": {"mlp": "kernel"}}, "mlp must be 'mlp' or 'snnk', got 'kernel'"),
        ({"block_args": {"mlp": "snnk", "act": "polynorm"}}, "act must be left out: snnk has features in its place"),
        ({"block_args": {"num_features": 4}}, "num_features must be left out: only mlp='snnk' has features"),
        ({"stem_norm": "layernorm"}, "stem_norm must be one of batchnorm, evonorms0"),
        ({"stem_norm": "evonorms0", "embed_dims": (36, 64, 128, 192)}, "stem_norm must be for a multiple of 32"),
    ],
)
def test_what_a_network_cannot_be_is_refused(own, message):
    with pytest.raises(InputError, match=message):
        timm.create_model("soft_nano", **SMALL, **own)


@pytest.mark.parametrize("norm", ["evonorms0", "evonormb0"])
def test_evonorm_is_norm_and_activation_and_refuses_padding(norm):
    embed = stem(3, 32, norm=norm).eval()
    x = torch.rand(1, 3, 32, 32)
    expected = x
    for layer in embed:
        expected = layer.bn(layer.conv(expected))
    assert expected.min() < 0  # no ReLU on top
    torch.testing.assert_close(embed(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(embed(x), expected)
    with pytest.raises(InputError, match="mask must be None: EvoNorm takes statistics over the padding"):
        embed(x, torch.ones(1, 32, 32, dtype=torch.bool))


def fused(**own):
    torch.manual_seed(0)
    return feed_forward("mlp", 24, 96, "gelu_tanh", 0, **own).eval(), torch.randn(2, 5, 24)


def operations(run):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return {event.key for event in seen.key_averages()}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_first_layer_and_gelu_are_one_operation(monkeypatch):
    monkeypatch.setattr(ops_linear, "_ABLE", True)  # on processors where it is not faster, too
    mlp, x = fused()
    exact = copy.deepcopy(mlp).double()(x.double())
    with torch.no_grad():
        torch.testing.assert_close(mlp(x).double(), exact, rtol=0, atol=1e-5)
        assert "aten::gelu" not in operations(lambda: mlp(x))
        assert "aten::gelu" in operations(lambda: mlp.double()(x.double()))
        mlp.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert mlp(x).dtype == torch.bfloat16
    torch.testing.assert_close(mlp(x).double(), exact, rtol=0, atol=1e-5)
    assert "aten::gelu" in operations(lambda: mlp(x))  # its gradient needs what goes in


@torch.no_grad()
def test_dropout_that_is_on_is_not_left_out():
    mlp = fused()[0]
    x = torch.randn(2, 5, 24)
    dropping = FusedMlp(24, 96, act_layer=GELUTanh, drop=0.5)
    exchange_linear(dropping.eval()).drop1.train()  # Monte Carlo dropout
    assert not torch.equal(dropping(x), dropping(x))
    dropping.eval().drop2.train()
    assert not torch.equal(dropping(x), dropping(x))
    mlp.drop1 = nn.Threshold(0.0, 7.0)
    assert not torch.equal(mlp(x), fused()[0](x))
    mlp = fused()[0]
    mlp.act.forward = torch.zeros_like
    assert torch.equal(mlp(x), mlp.fc2.bias.expand(2, 5, 24))


@torch.no_grad()
def test_who_looks_between_the_layers_finds_what_timm_has_there():
    for name in ("fc1", "act", "drop1", "norm"):
        mlp, x = fused()
        hidden = F.linear(x, mlp.fc1.weight, mlp.fc1.bias)
        expected = hidden if name == "fc1" else F.gelu(hidden, approximate="tanh")
        seen = []
        handle = getattr(mlp, name).register_forward_hook(lambda module, given, out, seen=seen: seen.append(out))
        whole = mlp(x)
        torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)
        handle.remove()
        torch.testing.assert_close(mlp(x), whole, rtol=0, atol=1e-5)
        assert len(seen) == 1
    mlp, x = fused()
    names = []
    with torch.nn.modules.module.register_module_forward_hook(lambda module, given, out: names.append(type(module))):
        mlp(x)
    assert nn.Dropout in names
    with FlopCounterMode(display=False) as counter:
        mlp(x)
    assert counter.get_total_flops() == 2 * 2 * 10 * 24 * 96
    assert "aten::gelu" in str(torch.jit.trace(mlp, x).inlined_graph)
