"""The block: inference, which takes its feed-forward part in chunks, against the whole."""

import pytest
import timm
import torch
from timm.models._features_fx import create_feature_extractor

from softmaxfree.bench.memory import peak_bytes
from softmaxfree.layers import Block, block
from softmaxfree.mixers import create_mixer


def _block(dim: int = 8, **arguments) -> Block:
    torch.manual_seed(0)
    return Block(create_mixer("soft", dim=dim, num_heads=2, ratio=2), **arguments).eval()


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_chunks_are_the_whole(batch: int, rows: int, monkeypatch: pytest.MonkeyPatch):
    layer, x = _block(), torch.randn(batch, 30, 8)
    whole = layer(x, [5, 6])
    monkeypatch.setattr(block, "_CPU_HIDDEN_BYTES", rows * 32 * 4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, [5, 6]), whole)


def test_stochastic_depth_drops_images_without_gradients_too(monkeypatch: pytest.MonkeyPatch):
    layer = _block(drop_path=0.5).train()
    x = torch.randn(3, 30, 8)
    monkeypatch.setattr(block, "_CPU_HIDDEN_BYTES", 1)
    torch.manual_seed(1)
    expected = layer(x, [5, 6])
    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, [5, 6]), expected)


def test_inference_never_holds_the_hidden_features():
    layer, x = _block(32), torch.randn(1, 256 * 256, 32)

    def infer():
        with torch.inference_mode():
            return layer(x, [256, 256])

    # queries, values, a copy for windows, attention, its convolution; tiles of the kernel; not 2 * 4 of hidden features
    assert peak_bytes(infer, torch.device("cpu")) < 5 * x.nbytes + (20 << 20) < 8 * x.nbytes


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced_in_one_piece(monkeypatch: pytest.MonkeyPatch):
    model, images = timm.create_model("soft_tiny", num_classes=3).eval(), torch.randn(1, 3, 64, 64)
    monkeypatch.setattr(block, "_CPU_HIDDEN_BYTES", 1 << 14)
    with torch.no_grad():
        expected = model(images)
        graph = create_feature_extractor(model, ["head"])
        torch.testing.assert_close(graph(images)["head"], expected)
        torch.testing.assert_close(torch.jit.trace(model, images)(images), expected)
        calls = [node for node in graph.graph.nodes if node.target == "stages.0.blocks.0.mlp.fc1"]
        assert len(calls) == 1


def test_many_models_at_once(monkeypatch: pytest.MonkeyPatch):
    layer, x = _block(), torch.randn(4, 2, 30, 8)
    monkeypatch.setattr(block, "_CPU_HIDDEN_BYTES", 7 * 32 * 4)
    with torch.no_grad():
        expected = torch.stack([layer._feed_forward(z) for z in x])
        torch.testing.assert_close(torch.vmap(layer._in_chunks)(x), expected)
