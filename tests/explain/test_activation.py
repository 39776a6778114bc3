"""Class activation maps of classifiers, segments and detections."""

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

pytest.importorskip("pytorch_grad_cam")

from softmaxfree.errors import InputError
from softmaxfree.explain import class_activation
from softmaxfree.models.detection import Detector
from softmaxfree.models.segmentation import Segmenter
from tests.explain.test_rows import TINY

BACKBONE = {key: value for key, value in TINY.items() if key != "num_classes"}


def scaled(values):
    values = values.clamp(min=0)
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize("arguments", [{}, {"mixer": "soft"}], ids=["class token", "soft"])
def test_of_a_pyramid_it_is_the_head_s_weights_at_each_cell(arguments):
    torch.manual_seed(0)
    model = timm.create_model("soft_nano", **TINY, **arguments).eval()
    image = torch.randn(3, 128, 192)
    found = class_activation(model, image)
    with torch.no_grad():
        logits = model(image[None])[0]
        best = int(logits.argmax())
        # the head reads the mean of the map: its gradient is the weights of the class, the same at each cell
        cells = F.conv2d(model.forward_features(image[None]), model.head.weight[best][None, :, None, None])[0, 0]
    assert found.score == pytest.approx(float(logits[best]), rel=1e-4)
    assert (found.target, found.layer, found.pixels.shape) == (best, "stages.3", (128, 192))
    at_cells = found.pixels[15::32, 15::32]
    assert np.corrcoef(at_cells.flatten(), scaled(cells).flatten())[0, 1] > 0.98
    assert found.pixels.min() >= 0
    assert found.pixels.max() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 96, "embed_dim": 8, "num_heads": (1,) * 4, "window_size": 3}),
        ("convnext_atto", {"dims": (8, 8, 16, 16)}),
    ],
    ids=["channels last", "the rest of the image has no cell"],
)
def test_maps_of_other_networks_of_timm(name, own):
    torch.manual_seed(0)
    model = timm.create_model(name, depths=(1,) * 4, num_classes=4, **own).eval()
    model.head.fc.weight.data.mul_(1000)
    side = 96 if "img_size" in own else 110
    image, kept = torch.randn(3, side, side), []
    found = class_activation(model, image, 2)
    last = dict(model.named_modules())[found.layer]
    handle = last.register_forward_hook(lambda *args: kept.append(args[2]))
    logits = model(image[None])
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 2], kept[0])
    places = (1, 2) if "img_size" in own else (2, 3)
    cells = (kept[0] * gradient.mean(places, keepdim=True)).sum(3 if places == (1, 2) else 1)[0]
    assert cells.shape == (3, 3)
    assert found.pixels.shape == (side, side)
    at_cells = found.pixels[15:96:32, 15:96:32]
    assert np.corrcoef(at_cells.flatten(), scaled(cells.detach()).flatten())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("crossvit_tiny_240", {}, "layer 'blocks.2' must make a map of 15 x 15 cells, got list"),
        ("mvitv2_tiny", {}, "stage -1 of MultiScaleVit has its map in no module of that name"),
        ("hiera_tiny_224", {"stage": 0}, "stage must be the last one of Hiera"),
        ("soft_nano", {"layer": "head"}, r"layer 'head' must make a map of 2 x 2 cells, got \(1, 1000\)"),
        ("convnext_atto", {"layer": "stem"}, "layer 'stem' must make a map of 7 x 7 cells"),
    ],
)
def test_what_is_no_map_is_refused(name, given, message):
    model = timm.create_model(name)
    with pytest.raises(InputError, match=message):
        class_activation(model, torch.rand(3, *model.default_cfg["input_size"][1:]), 0, **given)


@pytest.mark.parametrize("name", ["soft_vit_tiny", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "eigengradcam"])
def test_of_plain_transformers(name, method):
    torch.manual_seed(0)
    size = {"img_size": (64, 96), "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 4}
    found = class_activation(timm.create_model(name, **size), torch.randn(1, 3, 64, 96), method=method)
    assert found.layer == "blocks.1.norm1"
    assert found.pixels.shape == (64, 96)
    assert found.pixels.isfinite().all()
    assert found.pixels.max() > 0.99


def test_sizes_that_are_no_multiple_of_the_cell_are_not_stretched():
    torch.manual_seed(0)
    model = timm.create_model("soft_nano", **TINY, mixer="elu_linear").eval()
    image = torch.randn(3, 97, 65)
    found = class_activation(model, image, 1)
    assert found.pixels.shape == (97, 65)
    with torch.no_grad():
        cells = F.conv2d(model.forward_features(image[None]), model.head.weight[1][None, :, None, None])
    assert cells.shape[2:] == (4, 3)
    whole = F.interpolate(scaled(cells), size=(128, 96), mode="bilinear")[0, 0, :97, :65]
    torch.testing.assert_close(found.pixels, whole, rtol=0, atol=0.02)


def test_weights_keep_their_gradients_and_mode():
    model = timm.create_model("soft_nano", **TINY).train()
    model.head.bias.grad = torch.full_like(model.head.bias, 3.0)
    model.stages[0].embed.requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    statistics = {key: value.clone() for key, value in model.state_dict().items()}
    class_activation(model, torch.randn(3, 64, 64))
    assert model.training
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["head.bias"]
    assert (model.head.bias.grad == 3).all()
    assert all(torch.equal(value, statistics[key]) for key, value in model.state_dict().items())
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())


def test_a_segment_and_a_detection():
    torch.manual_seed(0)
    image = torch.rand(3, 100, 150)
    segmenter = Segmenter("semantic_fpn", "soft_nano", 3, model_args=BACKBONE).eval()
    with torch.no_grad():
        logits = segmenter([image])[0]
    classes = logits.argmax(0)
    largest = int(classes.flatten().bincount().argmax())
    found = class_activation(segmenter, image)
    assert found.target == largest
    assert found.score == pytest.approx(float(logits[largest][classes == largest].mean()), rel=1e-3)
    assert found.pixels.shape == (100, 150)
    for head in ("retinanet", "mask_rcnn"):
        detector = Detector(
            head, "soft_nano", 3, min_size=128, max_size=200, fpn_channels=32, model_args=BACKBONE
        ).eval()
        network = getattr(detector.network, "roi_heads", detector.network)
        network.score_thresh = 0.0
        with torch.no_grad():
            boxes = detector([image])[0]
        found = class_activation(detector, image, 1)
        assert found.score == pytest.approx(float(boxes["scores"][1]), rel=1e-3)
        assert found.label == int(boxes["labels"][1])
        assert found.box == pytest.approx(boxes["boxes"][1].tolist(), rel=1e-3)
        assert found.pixels.shape == (100, 150)
        assert found.pixels.max() > 0.9
        network.score_thresh = 2.0
        with pytest.raises(InputError, match="detects none"):
            class_activation(detector, image)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": 5}, "target must be the number of a class, 0 to 4, got 5"),
        ({"target": -1}, "target must be 0 or more"),
        ({"target": 1.5}, "target must be a whole number"),
        ({"method": "grad"}, "method: there is no 'grad'"),
        ({"stage": 4}, "stage must be 0 to 3"),
        ({"layer": "stages.9"}, "layer: there is no 'stages.9'"),
    ],
)
def test_bad_input(given, message):
    model = timm.create_model("soft_nano", **TINY)
    with pytest.raises(InputError, match=message):
        class_activation(model, torch.zeros(3, 64, 64), **given)
    segmenter = Segmenter("semantic_fpn", "soft_nano", 3, model_args=BACKBONE)
    with pytest.raises(InputError, match="0 to 2, got 3"):
        class_activation(segmenter, torch.rand(3, 64, 64), 3)


def test_a_layout_that_fits_both_ways_is_that_of_the_network():
    own = {"img_size": 64, "window_size": 4, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 3}
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=16, **own).eval()  # 16 x 16 cells
    image, kept = torch.randn(1, 3, 64, 64), {}

    def keep(module, args, out):
        kept["map"] = out
        out.retain_grad()

    handle = model.layers[0].register_forward_hook(keep)
    model(image)[0, 1].backward()
    handle.remove()
    cells = kept["map"]
    expected = (cells * cells.grad.mean((1, 2), keepdim=True)).sum(-1)[0].detach()
    found = class_activation(model, image, 1, stage=0).pixels[2::4, 2::4]
    assert np.corrcoef(found.flatten(), scaled(expected).flatten())[0, 1] > 0.95


def test_without_a_head_there_is_no_class():
    model = timm.create_model("soft_nano", **{**TINY, "num_classes": 0})
    with pytest.raises(InputError, match="model must have a head"):
        class_activation(model, torch.rand(3, 64, 64))


def test_in_inference_mode_too():
    model = timm.create_model("soft_nano", **TINY)
    expected = class_activation(model, torch.ones(3, 64, 64))
    with torch.inference_mode():
        assert torch.equal(class_activation(model, torch.ones(3, 64, 64)).pixels, expected.pixels)
