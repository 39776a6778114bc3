"""Heads as slim as their backbone, and the ranges of a detector's arguments."""

import pytest

from softmaxfree.errors import InputError
from softmaxfree.models.detection import Detector
from softmaxfree.models.segmentation import Segmenter
from softmaxfree.tasks import DetectionTask, SegmentationTask
from softmaxfree.weights import read_notes
from tests.tasks.test_checkpoints import saved


@pytest.mark.parametrize(
    ("name", "width"), [("soft_nano", 64), ("test_resnet", 48), ("resnet18", 128), ("test_efficientnet", 32)]
)
def test_the_width_is_that_of_the_map_of_stride_8(name, width):
    detector = Detector("retinanet", name, 2, fpn_channels="auto")
    assert detector.fpn_channels == width
    assert detector.network.head.classification_head.cls_logits.in_channels == width
    upernet = Segmenter("upernet", name, 2, head_args="auto")
    assert upernet.head_args == {"hidden_size": width, "auxiliary_channels": width}
    fpn = Segmenter("semantic_fpn", name, 2, head_args="auto")
    assert fpn.head_args == {"decoder_pyramid_channels": width, "decoder_segmentation_channels": max(32, width // 2)}


def test_other_decoders_keep_their_widths():
    assert Segmenter("unet", "soft_nano", 2, head_args="auto").head_args == {}


def test_a_checkpoint_tells_the_width(tmp_path):
    for module, key, expected in (
        (DetectionTask("soft_nano", 2, "retinanet", None, {"fpn_channels": "auto"}), "detector_args", 64),
        (SegmentationTask("soft_nano", 2, "semantic_fpn", None, "auto"), "head_args", 64),
    ):
        saved(module, tmp_path / "best.ckpt")
        arguments = read_notes(tmp_path / "best.ckpt")["hyper_parameters"]
        assert next(iter(arguments[key].values())) == expected
        assert type(module)(**arguments).model.state_dict().keys() == module.model.state_dict().keys()


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        ("retinanet", {"score_thresh": 1.5}, "score_thresh must be from 0 to 1, got 1.5"),
        ("retinanet", {"nms_thresh": -0.1}, "nms_thresh must be 0 or more, got -0.1"),
        ("retinanet", {"detections_per_img": 0}, "detections_per_img must be 1 or more, got 0"),
        ("retinanet", {"topk_candidates": 2.5}, "topk_candidates must be a whole number, 1 or more, got 2.5"),
        ("retinanet", {"fg_iou_thresh": 0.3}, r"bg_iou_thresh must be fg_iou_thresh \(0.3\) or less, got 0.4"),
        ("mask_rcnn", {"box_batch_size_per_image": -1}, "box_batch_size_per_image must be 1 or more, got -1"),
        ("mask_rcnn", {"rpn_positive_fraction": "x"}, "rpn_positive_fraction must be 0 or more, got 'x'"),
        ("mask_rcnn", {"fpn_channels": "slim"}, "fpn_channels must be a whole number"),
    ],
)
def test_arguments_out_of_range(head, arguments, message):
    with pytest.raises(InputError, match=message):
        Detector(head, "soft_nano", 2, **arguments)
