"""Object detection: RetinaNet and Mask R-CNN of torchvision over any backbone of timm.

Images of a batch are padded to one size. With our backbones no result and no loss depends on that padding: the mask of
each image's own pixels reaches the backbone, and the rest gets the maps of each image without the padding.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from softmaxfree.arguments import require, require_number, require_whole, require_whole_numbers
from softmaxfree.errors import InputError
from softmaxfree.models.creation import create_model
from softmaxfree.models.detection_networks import (
    Anchors,
    PaddedMaskRCNN,
    PaddedRetinaNet,
    Pyramid,
    RoIAlign,
    Transform,
)
from softmaxfree.models.features import backbone_groups, backbone_no_weight_decay, slim_width
from softmaxfree.models.parts import Parts
from softmaxfree.models.targets import check_targets

__all__ = ["HEADS", "Detector"]

_BACKBONE = "network.backbone.net."  # prefix of the names of its weights
HEADS = {"retinanet": PaddedRetinaNet, "mask_rcnn": PaddedMaskRCNN}


class Detector(nn.Module):
    """Detects objects: boxes with RetinaNet, boxes and masks with Mask R-CNN.

    Args:
        head: "retinanet" (on maps of stride 8 to 128, the last two made from the backbone's last) or "mask_rcnn"
            (stride 4 to 64).
        backbone: model of timm that takes `features_only`, ours included.
        num_classes: without the background.
        model_args: further arguments of the backbone, such as `pretrained` or `drop_path_rate`.
        fpn_channels: width of the pyramid and, in proportion, of the heads; "auto" is `slim_width` of the backbone.
        anchor_sizes: side, pixels, of the anchors of each of the five levels.
        min_size: pixels that the shorter side of an image is resized to for inference. Training images are taken as
            they come: their size is a matter of augmentation.
        max_size: pixels that the longer side may have then.
        **kwargs: further arguments of torchvision's `RetinaNet` or `MaskRCNN`, such as `detections_per_img`.

    Raises:
        InputError: there is no such head, backbone or argument.
    """

    def __init__(
        self,
        head: Literal["retinanet", "mask_rcnn"],
        backbone: str,
        num_classes: int,
        *,
        model_args: dict[str, Any] | None = None,
        fpn_channels: int | Literal["auto"] = 256,
        anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
        min_size: int = 800,
        max_size: int = 1333,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _check(head, num_classes, anchor_sizes, kwargs)
        net = create_model(backbone, features_only=True, **(model_args or {}))
        if fpn_channels == "auto":
            fpn_channels = slim_width(net)
        require_whole("fpn_channels", fpn_channels, 1)
        self.head, self.num_classes, self.fpn_channels = head, num_classes, fpn_channels
        pyramid = Pyramid(net, backbone, head, fpn_channels)
        anchors = Anchors(head, anchor_sizes)
        if head == "retinanet":
            self.network: Any = PaddedRetinaNet(pyramid, num_classes, anchor_generator=anchors, **kwargs)
            dense = self.network.head
            for tower in (dense.classification_head.conv, dense.regression_head.conv):
                _init_tower(tower)
        else:
            parts = _region_heads(fpn_channels, num_classes + 1)  # class 0 is the background
            self.network = PaddedMaskRCNN(pyramid, None, rpn_anchor_generator=anchors, **parts, **kwargs)
            dense = self.network.rpn.head
        for name, conv in dense.named_modules():
            if name.endswith(("cls_logits", "bbox_reg", "bbox_pred")):
                conv.register_forward_hook(_in_float32)
        config = resolve_model_data_config(net)
        smallest = getattr(getattr(net, "model", None), "min_img_size", 1)
        self.network.transform = Transform((min_size, max_size), config["mean"], config["std"], smallest)
        self.set_size(min_size, max_size)

    @property
    def parts(self) -> Parts:
        """Names of its backbone, and of the layers that depend on the classes."""
        if self.head == "retinanet":
            return Parts(_BACKBONE, ("network.head.classification_head.cls_logits",))
        roi = "network.roi_heads"
        return Parts(_BACKBONE, (f"{roi}.box_predictor", f"{roi}.mask_predictor.mask_fcn_logits"))

    @property
    def size(self) -> tuple[int, int]:
        """Shorter side that an image is resized to for inference, and the longest that the other may have; pixels."""
        return self.network.transform.min_size[-1], self.network.transform.max_size

    def set_size(self, short: int, long: int) -> None:
        """Sets the size of images for inference; `size` tells it.

        Args:
            short: pixels that the shorter side of an image is resized to.
            long: pixels that the longer side may have then; the shorter one gets less where it would have more.

        Raises:
            InputError: `short` is above `long`, or below what the backbone needs.
        """
        smallest = self.network.transform.min_img_size
        require_whole("size: the shorter side", short, 1)
        require_whole("size: the longer side", long, 1)
        if not smallest <= short <= long:
            raise InputError(
                f"size must be a shorter side of {smallest} pixels or more and a longer one not below it, "
                f"got {short} and {long}"
            )
        self.network.transform.min_size, self.network.transform.max_size = (short,), long

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """Detects objects, or in training mode returns the losses.

        Args:
            images: float `(3, height, width)` in [0, 1], of any sizes.
            targets: in training: `boxes` `(n, 4)` in pixels (left, top, right, bottom), `labels` `(n,)` from 0, and for
                Mask R-CNN `masks` `(n, height, width)`.

        Returns:
            In training mode a dict of scalar losses. Else a dict an image, best first: `boxes` `(n, 4)`, `labels`
            `(n,)` from 0, `scores` `(n,)`, and of Mask R-CNN `masks` `(n, height, width)`, bool.

        Raises:
            InputError: no images, or such as the network cannot take; no or unfit targets. For the values of targets on
                another device than the CPU the losses are nan instead, so that nobody waits for the device.
        """
        _check_images(images)
        shift = int(self.head == "mask_rcnn")  # its class 0 is the background
        if self.training:
            masks = self.head == "mask_rcnn"
            checked, wrong = check_targets(images, targets, self.num_classes, self.head, masks)
            losses = self.network(images, [{**each, "labels": each["labels"] + shift} for each in checked])
            return {name: loss.masked_fill(wrong, torch.nan) for name, loss in losses.items()}
        detections = self.network(images)
        for found in detections:
            found["labels"] = found["labels"] - shift
            if "masks" in found:
                found["masks"] = found["masks"][:, 0] >= 0.5
        return detections

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block of the backbone in the backward pass."""
        self.network.backbone.net.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the backbone's weights that do not decay."""
        return backbone_no_weight_decay(self.network.backbone.net, _BACKBONE)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns the backbone's groups for layer-wise decay, or raises InputError; the heads follow the last one."""
        return backbone_groups(self.network.backbone.net, _BACKBONE, coarse)


def _region_heads(channels: int, num_classes: int) -> dict[str, nn.Module]:
    """The heads of Mask R-CNN in proportion to the pyramid; torchvision's own at 256 channels."""
    pool = RoIAlign(7)
    predictor = FastRCNNPredictor(4 * channels, num_classes)
    for layer in (predictor.cls_score, predictor.bbox_pred):
        layer.register_forward_hook(_in_float32)
    return {
        "box_roi_pool": pool,
        "box_head": TwoMLPHead(channels * 7**2, 4 * channels),
        "box_predictor": predictor,
        "mask_roi_pool": RoIAlign(14),
        "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes),
    }


def _init_tower(tower: nn.Module) -> None:
    """He's initialisation: under torchvision's deviation of 0.01 gradients vanish in narrow towers."""
    for conv in tower.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")


def _in_float32(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Boxes are decoded in the dtype of what is predicted, which a half one cannot hold."""
    return output.float()


def _check(head: str, num_classes: int, anchor_sizes: Sequence[int], kwargs: dict[str, Any]) -> None:
    if head not in HEADS:
        raise InputError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    require_whole("num_classes", num_classes, 1)
    require_whole_numbers("anchor_sizes, one a level,", anchor_sizes, 5, 1)
    # torchvision passes what it does not know on, to where nobody looks.
    allowed = [n for n, p in inspect.signature(HEADS[head]).parameters.items() if isinstance(p.default, int | float)]
    if unknown := sorted(kwargs.keys() - set(allowed)):
        raise InputError(f"{head} has no argument {', '.join(unknown)}; there are {', '.join(allowed)}")
    for name, value in kwargs.items():
        if name.endswith(("_thresh", "_fraction")):
            require_number(name, value, 0)
            require(value <= 1, name, value, "from 0 to 1")
        else:  # a number of boxes
            require_whole(name, value, 1)
    for kind in ("", "rpn_", "box_"):
        low, high = kwargs.get(f"{kind}bg_iou_thresh"), kwargs.get(f"{kind}fg_iou_thresh")
        defaults = inspect.signature(HEADS[head]).parameters
        if low is not None or high is not None:
            low = defaults[f"{kind}bg_iou_thresh"].default if low is None else low
            high = defaults[f"{kind}fg_iou_thresh"].default if high is None else high
            require(low <= high, f"{kind}bg_iou_thresh", low, f"{kind}fg_iou_thresh ({high}) or less")


def _check_images(images: Sequence[Tensor]) -> None:
    if len(images) == 0:
        raise InputError("images is empty; give one or more (3, height, width)")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or image.numel() == 0:
            raise InputError(f"images[{i}] must be float (3, height, width), got {image.dtype} {tuple(image.shape)}")
