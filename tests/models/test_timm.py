"""What timm's tools do with the models: features, fine-tuning, checkpointing, surgery, compiling."""

import copy

import pytest
import timm
import timm.optim
import torch
from timm.models import group_parameters
from torch._dynamo.testing import CompileCounterWithBackend

from softmaxfree import ops


def nano(**kwargs):
    return timm.create_model("soft_nano", num_classes=5, **kwargs)


@pytest.mark.parametrize("features_only", [False, True])
def test_layer_decay_follows_depth_and_spares_positions(features_only):
    kwargs = dict(features_only=True) if features_only else {}
    model = nano(**kwargs)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scale, decay = {}, {}
    names = {id(p): n.removeprefix("model.") for n, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            scale[names[id(p)]], decay[names[id(p)]] = group["lr_scale"], group["weight_decay"]
    weight = "stages.{}.blocks.{}.attn.q.weight".format
    assert scale["stages.0.embed.0.conv.weight"] < scale[weight(0, 0)] < scale[weight(1, 0)] < scale[weight(2, 0)]
    assert scale[weight(2, 0)] * 2 == scale[weight(2, 1)]
    assert scale["stages.1.embed.0.conv.weight"] == scale[weight(1, 0)]
    assert decay["stages.0.pos_embed.table"] == decay["stages.3.cls_token"] == 0
    assert decay[weight(0, 0)] == 0.1
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == (5 if features_only else 6)


@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_recomputes_blocks_and_changes_nothing(features_only, monkeypatch):
    model = nano(features_only=features_only).train()
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    calls = []
    inner = again.model if features_only else again
    for stage in inner.stages:
        for block in stage.blocks:
            block.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 64, 64)
    for net in (model, again):
        out = net(x)
        sum(m.square().sum() for m in (out if features_only else [out])).backward()
    assert len(calls) == 2 * 5  # each of the five blocks ran twice
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_forward_intermediates():
    model, x = nano().eval(), torch.randn(2, 3, 64, 96)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 16, 24), (64, 8, 12), (128, 4, 6), (192, 2, 3)]
    last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(last_two, maps[2:], strict=True))
    (first,) = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(first, maps[0])
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_pruning():
    model, x = nano().eval(), torch.randn(2, 3, 64, 64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert model.prune_intermediate_layers([1, -2]) == [1, 2]
    assert len(model.stages) == 3
    assert model.num_features == 128
    torch.testing.assert_close(model(x), maps[2])


def test_reset_classifier():
    model, x = nano().eval(), torch.randn(2, 3, 64, 64)
    model.reset_classifier(9)
    assert model.get_classifier().out_features == model(x).shape[1] == 9
    model.reset_classifier(0)
    pooled = model(x)
    assert pooled.shape == (2, 192)
    model.reset_classifier(0, "avg")
    assert not torch.allclose(model(x), pooled)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 192, 2, 2)
    assert nano(in_chans=1).eval()(x[:, :1]).shape == (2, 5)


def test_another_solver():
    model, x = nano().eval(), torch.randn(1, 3, 64, 64)
    before = model(x)
    model.set_solver({"name": "cholesky", "ridge": 0.5})
    assert not torch.allclose(model(x), before, rtol=1e-3)
    same = nano(solver=ops.Cholesky(ridge=0.5)).eval()
    same.load_state_dict(model.state_dict())
    assert torch.equal(same(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiles_in_one_graph_for_many_sizes(training):
    torch._dynamo.reset()
    model = nano(depths=(1, 1, 1, 1), solver=ops.Newton(iters=4)).train(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for size in ((64, 64), (96, 80), (130, 61)):
        x = torch.randn(2, 3, *size)
        with torch.set_grad_enabled(training):
            expected, out = copy.deepcopy(model)(x), compiled(x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        if training:
            out.sum().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())
    assert counter.frame_count <= 2  # the first size, then any size


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traces():
    model, x = nano().eval(), torch.randn(2, 3, 50, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        x = torch.randn(2, 3, 50, 64)
        torch.testing.assert_close(traced(x), model(x))
