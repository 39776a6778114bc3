"""Linear layers by oneDNN are torch's, and give way to what looks into torch's operations."""

import contextlib
import copy
import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from softmaxfree.errors import InputError
from softmaxfree.layers.linear import Linear, exchange_linear
from softmaxfree.ops import linear as module
from softmaxfree.ops.linear import linear

needs = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
SHAPES = [((3, 7, 20), 33), ((5, 20), 1), ((2, 3, 4, 20), 8), ((1, 1, 20), 64)]


@pytest.fixture(autouse=True)
def without_avx512(monkeypatch):
    """oneDNN computes the same on older processors, where it is not taken since it is not faster."""
    monkeypatch.setattr(module, "_ABLE", torch.backends.mkldnn.is_available())


def made(shape=(3, 7, 20), out=33, dtype=torch.float32):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(out, shape[-1]), torch.randn(out)
    return [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]


def names(run):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_float64(shape, out, with_bias):
    given = made(shape, out)
    given = given if with_bias else given[:2]
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    ours, exact = linear(*given), F.linear(*wide)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-5)
    toward = torch.randn_like(exact)
    found = torch.autograd.grad(ours, given, toward.float())
    for one, other in zip(found, torch.autograd.grad(exact, wide, toward), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(linear(*given), ours, rtol=0, atol=0)


def test_the_result_can_be_changed_in_place():
    x, weight, bias = made()
    linear(x, weight, bias).mul_(2).unflatten(-1, (3, 11)).transpose(1, 2).add_(1).sum().backward()
    grads = x.grad, weight.grad
    x.grad = weight.grad = None
    (2 * F.linear(x, weight, bias) + 1).sum().backward()
    for one, other in zip(grads, (x.grad, weight.grad), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_second_derivatives():
    given = made((4, 6), 5)
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    found = []
    for tensors, own in ((given, linear), (wide, F.linear)):
        first = torch.autograd.grad(own(*tensors).pow(3).sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("act", ["none", "gelu_tanh"])
def test_bfloat16(act):
    given = [tensor.detach() for tensor in made((3, 40, 96), 64)]
    narrow = [tensor.bfloat16() for tensor in given]
    exact = F.linear(*(tensor.double() for tensor in narrow))
    exact = F.gelu(exact, approximate="tanh") if act == "gelu_tanh" else exact
    plain = linear(*narrow, act)
    with torch.autocast("cpu", torch.bfloat16):
        cast = linear(*given, act)
        mixed = linear(narrow[0], *given[1:], act)
        learned = linear(given[0], given[1].requires_grad_(), given[2], act)
    assert learned.requires_grad
    for out in (plain, cast, mixed, learned):
        assert out.dtype == torch.bfloat16
        assert out.shape == (3, 40, 64)
        torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=2**-7)
    if module._BFLOAT16:
        assert torch.equal(plain, cast)
        seen = names(lambda: linear(*narrow, act))
        assert "mkldnn::_linear_pointwise" in seen
        assert "aten::gelu" not in seen


@needs
@pytest.mark.parametrize("wanted", [[], [0], [1], [2], [0, 2]])
def test_gradients_that_are_not_wanted_are_not_made(wanted):
    given = [tensor.detach() for tensor in made()]
    for i in wanted:
        given[i].requires_grad_()
    out = linear(*given)
    assert out.requires_grad == bool(wanted)
    if wanted:
        out.sum().backward()
    assert [i for i, tensor in enumerate(given) if tensor.grad is not None] == wanted


@needs
def test_which_library_is_taken(monkeypatch):
    x, weight, bias = (tensor.detach() for tensor in made())
    own, theirs = "mkldnn::_linear_pointwise", "aten::linear"
    assert own in names(lambda: linear(x, weight, bias))
    assert own in names(lambda: linear(x.unflatten(0, (1, 3)).mT.contiguous().mT, weight))
    for run in (
        lambda: linear(x.double(), weight.double(), bias.double()),
        lambda: linear(x.half(), weight.half(), bias.half()),
        lambda: linear(x[:0], weight, bias),
        lambda: torch.func.vmap(linear, (0, None, None))(x, weight, bias),
        lambda: torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (x,)),
    ):
        seen = names(run)
        assert own not in seen
        assert theirs in seen or "aten::addmm" in seen or "aten::mm" in seen
    with torch.autocast("cpu", torch.float16):
        assert own not in names(lambda: linear(x, weight, bias))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert own not in names(lambda: linear(x, weight, bias))


def test_what_looks_into_operations_finds_those_of_torch():
    layer, x = Linear(20, 33), made()[0].detach()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 21 * 20 * 33
    assert "mkldnn" not in str(torch.jit.trace(layer, x).inlined_graph)
    assert "mkldnn" not in str(torch.export.export(layer, (x,)).graph)
    assert symbolic_trace(nn.Sequential(layer, nn.ReLU()))(x).shape == (3, 7, 33)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    jacobian = torch.func.jacrev(lambda weight: linear(x[0], weight))(layer.weight.detach())
    assert jacobian.shape == (7, 33, 33, 20)
    batched = torch.autograd.functional.jacobian(lambda x: linear(x, layer.weight), x[0], vectorize=True)
    torch.testing.assert_close(batched[0, :, 0], layer.weight)


@pytest.mark.parametrize("first", [True, False])
def test_checkpoints_under_a_mode_in_one_of_two_passes(first):
    """The pass and the one that computes it again keep the same tensors."""
    layer, x = Linear(20, 33), made()[0]
    expected = torch.autograd.grad(layer(x).square().sum(), x)[0]
    with FlopCounterMode(display=False) if first else contextlib.nullcontext():
        loss = checkpoint(layer, x, use_reentrant=False).square().sum()
    with contextlib.nullcontext() if first else FlopCounterMode(display=False):
        loss.backward()
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_memory_of_any_layout(grad):
    long = torch.arange(40.0).sin()
    layouts = {
        "bias": (torch.randn(3, 4), torch.randn(5, 4), torch.randn(10)[::2]),
        "bias of one": (torch.randn(3, 4), torch.randn(5, 4), torch.randn(1).expand(5)),
        "frames": (long.unfold(0, 8, 1), torch.randn(3, 8), torch.randn(3)),
        "overlapping weight": (torch.randn(2, 6), long.unfold(0, 6, 2), None),
        "expanded": (torch.randn(1, 6).expand(4, 6), torch.randn(1, 6).expand(3, 6), None),
        "columns": (torch.randn(6, 4).T, torch.randn(6, 3).T, None),
        "every second": (torch.randn(4, 12)[:, ::2], torch.randn(6, 6)[::2], torch.randn(6)[::2]),
    }
    for name, given in layouts.items():
        leaves = [tensor.detach().requires_grad_(grad) for tensor in given if tensor is not None]
        ours, theirs = linear(*leaves), F.linear(*leaves)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=name)
        if grad:
            found = (torch.autograd.grad(out.square().sum(), leaves) for out in (ours, theirs))
            for one, other in zip(*found, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-3, msg=name)


def test_unusual_shapes_are_left_to_torch():
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    for bias in (torch.randn(1), torch.randn(1, 5), torch.randn(3, 5), torch.randn(3, 1), torch.tensor(1.0)):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert torch.equal(linear(x, weight[0]), F.linear(x, weight[0]))
    for wrong in ((torch.randn(5, 3),), (torch.randn(2, 5, 4),), (weight, torch.randn(5, device="meta"))):
        with pytest.raises(RuntimeError) as theirs:
            F.linear(x, *wrong)
        with pytest.raises(RuntimeError, match=re.escape(str(theirs.value).splitlines()[0])):
            linear(x, *wrong)
    with pytest.raises(InputError, match=r"act: there is no 'relu'"):
        linear(x, weight, act="relu")


def test_what_is_kept_for_gradients_is_what_they_need():
    x, weight, bias = (tensor.detach() for tensor in made((3, 4), 5))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda kept: kept
    ):
        linear(x.requires_grad_(), weight, bias)
        assert kept == [weight.shape]
        linear(x.detach(), weight.requires_grad_(), bias)
        assert kept == [weight.shape, x.shape]
    out = linear(x, weight.detach(), bias)  # frozen: its input may change
    with torch.no_grad():
        x.add_(1)
    out.sum().backward()


def test_no_gradient_comes_of_none():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return None

    x, weight, _ = made((3, 4), 5)
    Nothing.apply(linear(x, weight)).backward()
    assert x.grad is None
    assert weight.grad is None


def test_a_layer_keeps_its_hooks_and_its_owners():
    inner = nn.Linear(4, 4)
    seen = []
    inner.register_forward_hook(lambda module, given, out: seen.append(out))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = nn.utils.weight_norm(nn.Linear(4, 4))
    both = exchange_linear(nn.ModuleList([nn.Sequential(inner), nn.Sequential(inner), nn.Sequential(normed)]))
    assert both[0][0] is both[1][0] is inner
    x = torch.randn(2, 4)
    both[0](x)
    assert len(seen) == 1
    expected = F.linear(x, normed.weight, normed.bias)
    torch.testing.assert_close(both[2](x), expected, rtol=0, atol=1e-6)
    both[2](x).sum().backward()
    assert normed.weight_g.grad is not None


def test_a_layer_is_a_linear_layer():
    torch.manual_seed(0)
    theirs = nn.Linear(20, 33)
    torch.manual_seed(0)
    ours = Linear(20, 33)
    x = made()[0]
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=2e-6)
    assert isinstance(ours, nn.Linear)
    assert repr(ours) == repr(theirs)
    weights = theirs.weight
    both = nn.ModuleDict({"a": nn.Sequential(theirs), "b": nn.Linear(20, 33, bias=False)})
    assert exchange_linear(both) is both
    assert type(both["a"][0]) is type(both["b"]) is Linear
    assert both["a"][0].weight is weights
    assert list(both.state_dict()) == ["a.0.weight", "a.0.bias", "b.weight"]
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(x), ours(x))
    checkpoint(ours, x, use_reentrant=False).sum().backward()
    whole = x.grad
    x.grad = None
    ours(x).sum().backward()
    assert torch.equal(whole, x.grad)
