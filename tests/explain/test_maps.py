"""Maps in pixels: which token a pixel asks for, sizes, padding, what is refused; and nothing is left behind."""

import pytest
import timm
import torch

from softmaxfree.errors import InputError
from softmaxfree.explain import attention, explain
from softmaxfree.models.detection import Detector
from softmaxfree.models.segmentation import Segmenter
from tests.explain.test_rows import TINY


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("soft_nano", mixer="soft", mixer_args={"landmark_sampling": "mean"}, **TINY).eval()


@pytest.fixture
def image():
    return torch.randn(3, 75, 106, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("stage", "stride"), [(0, 4), (1, 8), (2, 16), (3, 32), (-1, 32)])
def test_a_pixel_has_the_weight_of_its_token(model, image, stage, stride):
    found = attention(model, image, (105, 74), stage=stage)
    rows, columns = -(-75 // stride), -(-106 // stride)
    assert found.weights.shape[1:] == (rows, columns)
    assert found.token == rows * columns - 1
    pixels = found.pixels("all")
    assert pixels.shape == (len(found.weights), 75, 106)
    for y, x in ((0, 0), (74, 105), (33, 64), (31, 63)):
        assert torch.equal(pixels[:, y, x], found.weights[:, y // stride, x // stride])
    torch.testing.assert_close(found.pixels(), pixels.mean(0))
    assert torch.equal(explain(model, image, (105, 74), stage=stage, head=-1), pixels[-1])


def test_low_rank_has_negative_weights_and_its_own_row_sums(model):
    with torch.no_grad():
        for own in model.mixers:
            own.q.weight.mul_(300)
    found = attention(model, torch.randn(3, 128, 128), (64, 64), stage=0)
    assert found.weights.min() < 0
    assert explain(model, torch.randn(3, 128, 128), (64, 64), stage=0, head="all").min() < 0
    assert (found.row_sums - 1).abs().min() > 1e-3


@pytest.mark.parametrize("mixer", ["soft", "elu_linear", "softmax"])
def test_padding_changes_nothing(mixer, image):
    torch.manual_seed(0)
    model = timm.create_model("soft_nano", mixer=mixer, **TINY).eval()
    padded, mask = torch.full((3, 96, 128), 7.0), torch.zeros(96, 128, dtype=torch.bool)
    padded[:, :75, :106], mask[:75, :106] = image, True
    for query in ((50, 60), "cls"):
        alone = attention(model, image, query, stage=1).weights
        found = attention(model, padded, query, stage=1, mask=mask).weights
        assert found[:, 10:].abs().max() <= 1e-7
        assert found[:, :, 14:].abs().max() <= 1e-7
        torch.testing.assert_close(found[:, :10, :14], alone, rtol=1e-3, atol=1e-5 * float(alone.abs().max()))


def test_the_class_token_s_stage_with_padding(image):
    model = timm.create_model("soft_nano", **{**TINY, "num_heads": (2, 2, 2, 4)}).eval()
    padded, mask = torch.zeros(3, 128, 128), torch.zeros(128, 128, dtype=torch.bool)
    padded[:, :75, :106], mask[:75, :106] = image, True
    alone, found = attention(model, image), attention(model, padded, mask=mask)
    torch.testing.assert_close(found.weights[:, :3], alone.weights, rtol=1e-3, atol=1e-5)
    assert found.weights[:, 3:].abs().max() == 0


def test_a_segmenter_pads_and_a_detector_resizes(image):
    image = image.sigmoid()
    segmenter = Segmenter("semantic_fpn", "soft_nano", 3, model_args=_backbone())
    found = attention(segmenter, image, (105, 74), stage=1)
    assert found.weights.shape[1:] == (12, 16)  # of 96 x 128 pixels
    assert found.token == 9 * 16 + 13
    assert found.pixels().shape == (75, 106)
    detector = Detector(
        "retinanet", "soft_nano", 3, min_size=150, max_size=300, fpn_channels=32, model_args=_backbone()
    )
    found = attention(detector, image, (105, 74), stage=1)
    assert found.seen == (150, 212)
    assert found.token == 18 * found.weights.shape[2] + 26
    assert found.pixels().shape == (75, 106)


def _backbone():
    return {key: value for key, value in TINY.items() if key != "num_classes"} | {"mixer": "elu_linear"}


def test_nothing_is_left_behind(model, image):
    model.train()
    model.stages[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    explain(model, image, (4, 4), stage=1)
    with pytest.raises(InputError):
        explain(model, image[:2], (4, 4))
    assert model.training
    assert model.stages[1].training
    assert not model.stages[0].training
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_stops_at_the_layer(model, image):
    ran = []
    model.stages[2].register_forward_pre_hook(lambda *_: ran.append(1))
    explain(model, image, stage=1)
    assert not ran


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query": (106, 3)}, r"inside the image, x from 0 to 105 and y from 0 to 74, got \(106, 3\)"),
        ({"query": (3, 75)}, "inside the image"),
        ({"query": (-1, 3)}, "inside the image"),
        ({"query": "eye"}, r"query must be a pixel \(x, y\) or 'cls', got 'eye'"),
        ({"query": (1, 2, 3)}, "query must be a pixel"),
        ({"query": (float("nan"), 2)}, "query must be a pixel"),
        ({"stage": 4}, "stage must be 0 to 3, or from -1 to -4 counted from the end, got 4"),
        ({"stage": "one"}, "stage must be 0 to 3"),
        ({"stage": 2, "block": 1}, "block must be 0 to 0 in stage 2, .*, got 1"),
        ({"stage": 0, "head": 2}, "head must be 0 to 1, 'mean' or 'all', got 2"),
        ({"head": "first"}, "head must be"),
        ({"head": True}, "head must be"),
        ({"image": torch.zeros(2, 3, 64, 64)}, r"image must be one image .*, got \(2, 3, 64, 64\)"),
        ({"image": torch.zeros(64, 64)}, "image must be one image"),
        ({"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}, "image must be a float tensor.*uint8"),
        ({"image": "cat.jpg"}, "image must be a float tensor.*str"),
        ({"mask": torch.ones(75, 105, dtype=torch.bool)}, "mask must be bool"),
        ({"query": (100, 3), "mask": torch.arange(106).expand(75, 106) < 90}, "where the mask is True"),
    ],
)
def test_bad_input(model, image, given, message):
    with pytest.raises(InputError, match=message):
        explain(model, **{"image": image, **given})


def test_networks_that_are_not_understood(image):
    with pytest.raises(InputError, match="must have attention, got ResNet"):
        explain(timm.create_model("resnet18"), image)
    with pytest.raises(InputError, match="must be of timm"):
        explain(torch.nn.Linear(2, 2), image)
    with pytest.raises(InputError, match=r"image of .75, 106. pixels: .*224"):
        explain(timm.create_model("vit_tiny_patch16_224", depth=1), image)
