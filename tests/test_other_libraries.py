"""Our backbones in other people's code, as their users would write it."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import softmaxfree  # noqa: F401  registers the models

SLIM = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 1, 1, 1)}
CHANNELS = list(SLIM["embed_dims"])
IMAGES = torch.rand(2, 3, 64, 96)
NARROW: dict = {
    **{arch: {"decoder_channels": 16} for arch in ("deeplabv3", "deeplabv3plus", "pan", "upernet")},
    **{arch: {"decoder_channels": (16,) * 5} for arch in ("unet", "unetplusplus", "manet")},
    "dpt": {
        "encoder_depth": 4,
        "decoder_readout": "ignore",  # there is no class token to read
        "decoder_intermediate_channels": (16,) * 4,
        "decoder_fusion_channels": 16,
    },
}


@pytest.mark.parametrize("last_stage", ["softmax", "softmax_free"])
def test_timm_features(last_stage):
    net = timm.create_model("soft_nano", features_only=True, out_indices=(1, 3), last_stage=last_stage, **SLIM)
    assert net.feature_info.channels() == CHANNELS[1::2]
    assert net.feature_info.reduction() == [8, 32]
    assert [tuple(m.shape) for m in net(IMAGES)] == [(2, 16, 8, 12), (2, 32, 2, 3)]


@pytest.mark.parametrize("arch", smp.MODEL_ARCHITECTURES_MAPPING)
def test_segmentation_models_pytorch(arch):
    narrow = NARROW.get(arch, {})
    net = smp.create_model(arch, "tu-soft_nano", encoder_weights=None, classes=5, **SLIM, **narrow).eval()
    images = torch.rand(2, 3, 128, 128)  # the least that PAN takes
    with torch.no_grad():
        assert net(images).shape == (2, 5, 128, 128)


@pytest.mark.parametrize(("arch", "output_stride"), [("deeplabv3", 8), ("deeplabv3", 16), ("pan", 16), ("pan", 32)])
def test_segmentation_models_pytorch_with_an_output_stride(arch, output_stride):
    net = smp.create_model(
        arch, "tu-soft_nano", encoder_weights=None, encoder_output_stride=output_stride, decoder_channels=16, **SLIM
    )
    features = net.encoder(IMAGES)
    assert features[-1].shape == (2, 32, 64 // output_stride, 96 // output_stride)
    features[-1].sum().backward()
    assert net.encoder.model.model.stages[0].blocks[0].attn.q.weight.grad.any()


def test_torchvision_detection():
    body = timm.create_model("soft_nano", features_only=True, feature_cls="list", **SLIM)
    layers = {"stages_1": "0", "stages_2": "1", "stages_3": "2"}
    backbone = BackboneWithFPN(body, layers, CHANNELS[1:], 16, LastLevelP6P7(CHANNELS[-1], 16))
    net = RetinaNet(backbone, num_classes=4, min_size=64, max_size=96)
    targets = [
        {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    losses = net(list(IMAGES), targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert {"boxes", "labels", "scores"} == set(net.eval()(list(IMAGES))[0])


def timm_config(**kwargs):
    return TimmBackboneConfig(backbone="soft_nano", use_pretrained_backbone=False, **kwargs)


def test_transformers_backbone():
    backbone = TimmBackbone(timm_config(out_indices=[0, 1, 2, 3]))
    assert backbone.channels == [32, 64, 128, 192]
    maps = backbone(IMAGES).feature_maps
    assert [tuple(m.shape[-2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_transformers_upernet(tmp_path):
    config = UperNetConfig(
        backbone_config=timm_config(out_indices=[0, 1, 2, 3]), num_labels=5, hidden_size=16, auxiliary_channels=16
    )
    net = UperNetForSemanticSegmentation(config)
    out = net(IMAGES, labels=torch.randint(5, (2, 64, 96)))
    out.loss.backward()
    assert out.logits.shape == (2, 5, 64, 96)
    net.save_pretrained(tmp_path)
    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES).logits, net.eval()(IMAGES).logits)


def test_transformers_mask2former():
    config = Mask2FormerConfig(
        backbone_config=timm_config(out_indices=[0, 1, 2, 3]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=5,
    )
    with torch.no_grad():
        out = Mask2FormerForUniversalSegmentation(config).eval()(IMAGES)
    assert out.class_queries_logits.shape == (2, 6, 6)
    assert out.masks_queries_logits.shape[:2] == (2, 6)


def test_transformers_detr():
    config = DetrConfig(
        backbone_config=timm_config(out_indices=[3]),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        num_labels=5,
    )
    with torch.no_grad():
        out = DetrForObjectDetection(config).eval()(IMAGES)
    assert out.logits.shape == (2, 6, 6)
    assert out.pred_boxes.shape == (2, 6, 4)
