"""Object detection: RetinaNet and Mask R-CNN of torchvision over any backbone of timm.

Images of a batch are padded to one size. With our backbones no result depends on that padding: the mask of each
image's own pixels reaches the backbone, every convolution of the pyramid and the heads leaves zeros in the
padding, anchors there cannot match or be detected, and RoIAlign sees the border that the image alone has.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from softmaxfree.errors import InputError
from softmaxfree.models.creation import create_model
from softmaxfree.models.features import SoftmaxFreeFeatures, backbone_groups, backbone_no_weight_decay

__all__ = ["HEADS", "Detector"]

HEADS = {"retinanet": RetinaNet, "mask_rcnn": MaskRCNN}

_STRIDES = {"retinanet": (8, 16, 32, 64, 128), "mask_rcnn": (4, 8, 16, 32, 64)}
_PADDING_LOGIT = -1e4  # a score of zero in every dtype; -inf has no loss
_FAR = 1e5  # pixels, outside any image


class Detector(nn.Module):
    """Detects objects: boxes with RetinaNet, boxes and masks with Mask R-CNN.

    Args:
        head: "retinanet" (on maps of stride 8 to 128, the last two made from the backbone's last) or "mask_rcnn"
            (stride 4 to 64).
        backbone: model of timm that takes `features_only`, ours included.
        num_classes: without the background.
        model_args: further arguments of the backbone, such as `pretrained` or `drop_path_rate`.
        fpn_channels: width of the pyramid and, in proportion, of the heads.
        anchor_sizes: side, pixels, of the anchors of each of the five levels.
        min_size: pixels that the shorter side of an image is resized to for inference. Training images are taken as
            they come: their size is a matter of augmentation.
        max_size: pixels that the longer side may have then.
        **kwargs: further arguments of torchvision's `RetinaNet` or `MaskRCNN`, such as `detections_per_img`.

    Raises:
        ValueError: there is no such head, backbone or argument.
    """

    def __init__(
        self,
        head: Literal["retinanet", "mask_rcnn"],
        backbone: str,
        num_classes: int,
        *,
        model_args: dict[str, Any] | None = None,
        fpn_channels: int = 256,
        anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
        min_size: int = 800,
        max_size: int = 1333,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _check(head, num_classes, anchor_sizes, kwargs)
        net = create_model(backbone, features_only=True, **(model_args or {}))
        self.head, self.num_classes = head, num_classes
        pyramid = _Pyramid(net, backbone, head, fpn_channels)
        anchors = _Anchors(head, anchor_sizes)
        if head == "retinanet":
            self.network: Any = RetinaNet(pyramid, num_classes, anchor_generator=anchors, **kwargs)
            dense = self.network.head
            for tower in (dense.classification_head.conv, dense.regression_head.conv):
                _init_tower(tower)
        else:
            parts = _region_heads(fpn_channels, num_classes + 1)  # class 0 is the background
            self.network = MaskRCNN(pyramid, None, rpn_anchor_generator=anchors, **parts, **kwargs)
            dense = self.network.rpn.head
        pyramid.zero_padding_in(dense)
        config = resolve_model_data_config(net)
        self.network.transform = _PadAndMask(
            min_size, max_size, config["mean"], config["std"], getattr(getattr(net, "model", None), "min_img_size", 1)
        )

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
            ValueError: no images, or such as the network cannot take; no or unfit targets.
        """
        _check_images(images)
        shift = int(self.head == "mask_rcnn")  # its class 0 is the background
        if self.training:
            self._check_targets(images, targets)
            return self.network(images, [{**target, "labels": target["labels"] + shift} for target in targets or ()])
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
        return backbone_no_weight_decay(self.network.backbone.net, "network.backbone.net.")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns the backbone's groups for layer-wise decay, or raises ValueError; the heads follow the last one."""
        return backbone_groups(self.network.backbone.net, "network.backbone.net.", coarse)

    def _check_targets(self, images: Sequence[Tensor], targets: Sequence[dict] | None) -> None:
        needed = {"boxes", "labels"} | ({"masks"} if self.head == "mask_rcnn" else set())
        if targets is None or len(targets) != len(images):
            raise InputError(f"targets: training needs one for each of the {len(images)} images")
        for i, target in enumerate(targets):
            if missing := sorted(needed - target.keys()):
                raise InputError(f"targets[{i}] has no {', '.join(missing)}, which {self.head} needs")
            labels = target["labels"]
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise InputError(f"targets[{i}]: labels must be in 0..{self.num_classes - 1}, got {labels.tolist()}")


class _Pyramid(nn.Module):
    """Backbone and FPN; keeps the padding zero in its own convolutions and in those of the heads given to it."""

    def __init__(self, net: Any, name: str, head: str, channels: int) -> None:
        super().__init__()
        self.net = net
        self.out_channels = channels
        strides = net.feature_info.reduction()
        needed = [stride for stride in _STRIDES[head] if stride <= 32]
        if missing := [stride for stride in needed if stride not in strides]:
            raise InputError(f"backbone: {name} has maps of stride {strides}, but {head} needs {missing} too")
        self.levels = [strides.index(stride) for stride in needed]
        widths = [net.feature_info.channels()[level] for level in self.levels]
        extra: ExtraFPNBlock = LastLevelMaxPool()
        if head == "retinanet":
            extra = LastLevelP6P7(widths[-1], channels)
            extra.use_P5 = False  # whatever the widths
        self.fpn = FeaturePyramidNetwork(widths, channels, extra)
        self.masks: dict[tuple[int, ...], Tensor] = {}  # of this batch, by the size of the map
        for block in self.fpn.layer_blocks:
            # What comes from the coarser level may reach one cell into the padding.
            block.register_forward_pre_hook(self._zero_input)
        self.zero_padding_in(self.fpn)

    def zero_padding_in(self, module: nn.Module) -> None:
        """Lets every convolution leave zeros in the padding, and so a score of zero."""
        # Bound methods, so that a deep copy of the network uses its own masks.
        for name, conv in module.named_modules():
            if isinstance(conv, nn.Conv2d):
                scores = name.endswith("cls_logits")
                conv.register_forward_hook(self._drop_output if scores else self._zero_output)
                if name.endswith(("cls_logits", "bbox_reg", "bbox_pred")):
                    conv.register_forward_hook(_in_float32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps padded images (B, 3, Y, X), or (B, 4, Y, X) whose last channel is 1 where they are, to pyramids."""
        self.masks = {}
        if x.shape[1] == 3:
            maps = self.net(x)
        else:
            x, mask = x[:, :3], x[:, 3] > 0
            for stride in (4, 8, 16, 32, 64, 128):
                valid = mask[:, None, ::stride, ::stride]  # a cell is valid if its first pixel is
                self.masks[tuple(valid.shape[-2:])] = valid
            ours = isinstance(self.net, SoftmaxFreeFeatures)
            maps = self.net(x, mask=mask) if ours else [self._zeroed(m) for m in self.net(x)]
        return self.fpn({str(i): maps[level] for i, level in enumerate(self.levels)})

    def _mask(self, x: Tensor) -> Tensor | None:
        return self.masks.get(tuple(x.shape[-2:]))

    def _zeroed(self, x: Tensor) -> Tensor:
        mask = self._mask(x)
        return x if mask is None else x * mask

    def _zero_input(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (self._zeroed(args[0]),)

    def _zero_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        mask = self._mask(output)
        return output if mask is None else output.mul_(mask)  # in place: a convolution does not keep its output

    def _drop_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        mask = self._mask(output)
        return output if mask is None else output.masked_fill(~mask, _PADDING_LOGIT)


class _PadAndMask(GeneralizedRCNNTransform):
    """Appends a channel of ones to images that get padded, whose zeros then tell the padding."""

    def __init__(self, min_size: int, max_size: int, mean: Any, std: Any, min_img_size: int) -> None:
        super().__init__(min_size, max_size, mean, std, _skip_resize=True)  # in training
        self.min_img_size = min_img_size

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        sizes = {tuple(image.shape[-2:]) for image in images}
        if min(min(size) for size in sizes) < self.min_img_size:
            small = min(sizes, key=min)
            raise InputError(
                f"images: one is {small[0]}x{small[1]} pixels (for inference after resizing by min_size and max_size), "
                f"but the backbone needs {self.min_img_size} or more"
            )
        if len(sizes) > 1 or any(length % size_divisible for size in sizes for length in size):
            images = [torch.cat([image, image.new_ones(1, *image.shape[1:])]) for image in images]
        return super().batch_images(images, size_divisible)


class _Anchors(AnchorGenerator):
    """Anchors at the true strides, in float32; those in the padding lie where nothing can match them."""

    def __init__(self, head: str, sizes: Sequence[int]) -> None:
        octaves = (0, 1 / 3, 2 / 3) if head == "retinanet" else (0,)
        scales = tuple(tuple(int(size * 2**octave) for octave in octaves) for size in sizes)
        super().__init__(scales, ((0.5, 1.0, 2.0),) * len(sizes))
        self.strides = [[stride, stride] for stride in _STRIDES[head]]

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.float32, device)  # bfloat16 would round them to 8 pixels

    def grid_anchors(self, grid_sizes: list, strides: list) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, self.strides)  # torchvision's depend on the padding

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        everywhere = super().forward(image_list, feature_maps)
        return [_away_from_padding(anchors, *s) for anchors, s in zip(everywhere, image_list.image_sizes, strict=True)]


class _RoIAlign(MultiScaleRoIAlign):
    """RoIAlign at the true scales, and with the same surroundings of an image alone and in any batch."""

    def __init__(self, output_size: int) -> None:
        strides = _STRIDES["mask_rcnn"][:4]
        super().__init__([str(i) for i in range(4)], output_size, sampling_ratio=2)
        self.scales = [1 / stride for stride in strides]  # torchvision guesses them from the first batch
        self.map_levels = LevelMapper(2, 5)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        strides = zip(self.featmap_names, _STRIDES["mask_rcnn"], strict=False)
        return super().forward({n: _repeat_border(x[n], image_shapes, s) for n, s in strides}, boxes, image_shapes)


def _away_from_padding(anchors: Tensor, height: int, width: int) -> Tensor:
    x, y = (anchors[:, :2] + anchors[:, 2:]).unbind(1)  # twice the centre, which is the first pixel of the cell
    padding = (x >= 2 * width) | (y >= 2 * height)
    return anchors + _FAR * padding[:, None]


def _repeat_border(x: Tensor, image_sizes: list[tuple[int, int]], stride: int) -> Tensor:
    """Lets two more rows and columns repeat the last valid ones: RoIAlign makes a box one cell wide at least."""
    x = F.pad(x, (0, 2, 0, 2))
    for i, (height, width) in enumerate(image_sizes):
        row, column = -(-height // stride), -(-width // stride)
        x[i, :, row : row + 2] = x[i, :, row - 1 : row]
        x[i, :, :, column : column + 2] = x[i, :, :, column - 1 : column]
    return x


def _region_heads(channels: int, num_classes: int) -> dict[str, nn.Module]:
    """The heads of Mask R-CNN in proportion to the pyramid; torchvision's own at 256 channels."""
    pool = _RoIAlign(7)
    predictor = FastRCNNPredictor(4 * channels, num_classes)
    for layer in (predictor.cls_score, predictor.bbox_pred):
        layer.register_forward_hook(_in_float32)
    return {
        "box_roi_pool": pool,
        "box_head": TwoMLPHead(channels * 7**2, 4 * channels),
        "box_predictor": predictor,
        "mask_roi_pool": _RoIAlign(14),
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
    if num_classes < 1:
        raise InputError(f"num_classes must be 1 or more, got {num_classes}")
    if len(anchor_sizes) != 5:
        raise InputError(f"anchor_sizes must be five, one a level, got {list(anchor_sizes)}")
    # torchvision passes what it does not know on, to where nobody looks.
    allowed = [n for n, p in inspect.signature(HEADS[head]).parameters.items() if isinstance(p.default, int | float)]
    if unknown := sorted(kwargs.keys() - set(allowed)):
        raise InputError(f"{head} has no argument {', '.join(unknown)}; there are {', '.join(allowed)}")


def _check_images(images: Sequence[Tensor]) -> None:
    if len(images) == 0:
        raise InputError("images is empty; give one or more (3, height, width)")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or image.numel() == 0:
            raise InputError(f"images[{i}] must be float (3, height, width), got {image.dtype} {tuple(image.shape)}")
