"""Networks whose last maps keep a finer grid."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from softmaxfree.errors import InputError
from softmaxfree.models.segmentation import Segmenter


@pytest.mark.parametrize(("stride", "reductions"), [(32, [4, 8, 16, 32]), (16, [4, 8, 16, 16]), (8, [4, 8, 8, 8])])
def test_maps_keep_to_it(stride, reductions):
    network = timm.create_model("soft_nano", features_only=True, output_stride=stride)
    assert network.feature_info.reduction() == reductions
    maps = network(torch.randn(1, 3, 50, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-50 // r), 64 // r) for r in reductions]
    assert [s.pos_embed.grid for s in network.model.stages] == [(64 // r, 64 // r) for r in reductions]


@pytest.mark.parametrize(
    ("arguments", "reductions"),
    [({}, [8, 16, 32, 32]), ({"output_stride": 16}, [8, 16, 16, 16]), ({"output_stride": 8}, [8, 8, 8, 8])],
)
def test_a_coarser_stem(arguments, reductions):
    network = timm.create_model("soft_nano", features_only=True, stem_stride=8, **arguments)
    assert network.feature_info.reduction() == reductions
    maps = network(torch.randn(1, 3, 150, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-150 // r), 64 // r) for r in reductions]
    assert network.model.min_img_size == (4 - 1) * 8 + 1  # of one window of 4 x 4 tokens
    with pytest.raises(InputError, match="stem_stride must be 4 or 8, got 2"):
        timm.create_model("soft_nano", stem_stride=2)


@pytest.mark.parametrize("arguments", [{"stem_stride": 8}, {"output_stride": 16}])
def test_semantic_fpn_names_the_strides_that_it_needs(arguments):
    with pytest.raises(InputError, match=r"semantic_fpn needs maps of strides 4, 8, 16, 32, soft_nano makes \[[48], "):
        Segmenter("semantic_fpn", "soft_nano", 3, model_args=arguments)


def test_weights_of_another_stride_load():
    coarse, fine = timm.create_model("soft_nano"), timm.create_model("soft_nano", output_stride=8)
    with pytest.warns(UserWarning, match="position tables are resampled"):
        fine.load_state_dict(coarse.state_dict())
    torch.testing.assert_close(fine.stages[1].pos_embed.table, coarse.stages[1].pos_embed.table)
    torch.testing.assert_close(fine.stages[2].pos_embed.table, coarse.stages[2].pos_embed(8, 8))
    assert fine.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_the_smallest_image_follows():
    model = timm.create_model("soft_nano", output_stride=8, sr_ratios=(1, 1, 4, 2))
    assert model.min_img_size == (4 - 1) * 8 + 1
    model(torch.randn(2, 3, 25, 25))


def test_another_is_named():
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        timm.create_model("soft_nano", output_stride=4)


@pytest.mark.parametrize("decoder", ["deeplabv3", "deeplabv3plus", "pan"])
def test_decoders_that_ask_for_it(decoder):
    network = smp.create_model(decoder, "tu-soft_nano", encoder_weights=None, classes=3).eval()
    assert network.encoder.model.feature_info.reduction()[-1] == (8 if decoder == "deeplabv3" else 16)
    assert network(torch.randn(1, 3, 128, 160)).shape == (1, 3, 128, 160)
