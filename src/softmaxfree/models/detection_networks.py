"""torchvision's RetinaNet and Mask R-CNN, with each image's maps cut out of those of its padded batch.

The backbone takes all images at once. What follows sees no padding: pyramid, heads, anchors and losses get the cells
that the image alone would have. Images of one grid share the dense convolutions; the losses are means over images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from softmaxfree.errors import InputError
from softmaxfree.images import resized_shape
from softmaxfree.models.features import SoftmaxFreeFeatures
from softmaxfree.models.inputs import mask_of_sizes

STRIDES = {"retinanet": (8, 16, 32, 64, 128), "mask_rcnn": (4, 8, 16, 32, 64)}

Maps = dict[str, Tensor]
Targets = Sequence[dict[str, Tensor]] | None


class PaddedRetinaNet(RetinaNet):
    """RetinaNet whose results and losses are those of each image alone; arguments as torchvision's."""

    def forward(self, images: Sequence[Tensor], targets: Targets = None) -> Any:
        """Returns the detections of each image, or in training the losses; as torchvision's."""
        batch, targets = self.transform(images, targets)
        found: list[Any] = [None] * len(images)
        losses: dict[str, Any] = {"classification": 0, "bbox_regression": 0}
        for numbers, maps in self.backbone(batch):
            features = list(maps.values())
            own = _images(batch, numbers)
            outputs = self.head(features)
            anchors = self.anchor_generator(own, features)
            if self.training:
                assert targets is not None
                for name, loss in self.compute_loss([targets[i] for i in numbers], outputs, anchors).items():
                    losses[name] = losses[name] + loss * (len(numbers) / len(images))
            else:
                lengths = self.anchor_generator.lengths(features)
                split = {name: list(output.split(lengths, 1)) for name, output in outputs.items()}
                levels = [list(each.split(lengths)) for each in anchors]
                for i, one in zip(numbers, self.postprocess_detections(split, levels, own.image_sizes), strict=True):
                    found[i] = one
        return losses if self.training else _at_first_size(self.transform, found, batch, images)


class PaddedMaskRCNN(MaskRCNN):
    """Mask R-CNN whose results and losses are those of each image alone; arguments as torchvision's."""

    def forward(self, images: Sequence[Tensor], targets: Targets = None) -> Any:
        """Returns the detections of each image, or in training the losses; as torchvision's."""
        batch, targets = self.transform(images, targets)
        found: list[Any] = [None] * len(images)
        losses: list[dict[str, Tensor]] = []
        for i, maps in _each(self.backbone(batch)):
            own = _images(batch, [i])
            target = None if targets is None else [targets[i]]
            proposals, of_proposals = self.rpn(own, maps, target)
            detections, of_detections = self.roi_heads(maps, proposals, own.image_sizes, target)
            if self.training:
                losses.append({**of_detections, **of_proposals})
            else:
                found[i] = detections[0]
        if self.training:
            return {name: torch.stack([own[name] for own in losses]).mean() for name in losses[0]}
        return _at_first_size(self.transform, found, batch, images)


def _images(batch: ImageList, numbers: list[int]) -> ImageList:
    return ImageList(batch.tensors, [batch.image_sizes[i] for i in numbers])


def _each(groups: Any) -> Iterator[tuple[int, Maps]]:
    """Splits the maps of groups of images into those of each."""
    for numbers, maps in groups:
        split = {name: each.split(1) for name, each in maps.items()}
        for k, i in enumerate(numbers):
            yield i, {name: each[k] for name, each in split.items()}


def _at_first_size(transform: Any, found: list[Any], batch: ImageList, images: Sequence[Tensor]) -> list[Any]:
    return transform.postprocess(found, batch.image_sizes, [tuple(image.shape[-2:]) for image in images])


class Pyramid(nn.Module):
    """Backbone and feature pyramid: of padded images the maps of each, without the padding.

    Args:
        net: timm's `features_only` network.
        name: its name.
        head: "retinanet" or "mask_rcnn", whose strides the maps get.
        channels: of the maps.

    Raises:
        InputError: the network lacks a map of such a stride.
    """

    def __init__(self, net: Any, name: str, head: str, channels: int) -> None:
        super().__init__()
        self.net = net
        self.out_channels = channels
        strides = net.feature_info.reduction()
        self.strides = [stride for stride in STRIDES[head] if stride <= 32]
        if missing := [stride for stride in self.strides if stride not in strides]:
            raise InputError(f"backbone: {name} has maps of stride {strides}, but {head} needs {missing} too")
        self.levels = [strides.index(stride) for stride in self.strides]
        widths = [net.feature_info.channels()[level] for level in self.levels]
        extra: ExtraFPNBlock = LastLevelMaxPool()
        if head == "retinanet":
            extra = LastLevelP6P7(widths[-1], channels)
            extra.use_P5 = False  # whatever the widths
        self.fpn = FeaturePyramidNetwork(widths, channels, extra)

    def forward(self, images: ImageList) -> Iterator[tuple[list[int], Maps]]:
        """Yields the numbers of the images of one grid, and their maps by the names of the levels."""
        maps = self._maps(images)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (height, width) in enumerate(images.image_sizes):
            groups.setdefault((_cells(height, self.strides[0]), _cells(width, self.strides[0])), []).append(i)
        # at once: the gradient of each index would be a whole map
        rows = [x.unbind() for x in maps]
        for numbers in groups.values():
            height, width = images.image_sizes[numbers[0]]
            own = {}
            for level, (whole, row, stride) in enumerate(zip(maps, rows, self.strides, strict=True)):
                x = whole if len(groups) == 1 else torch.stack([row[i] for i in numbers])
                own[str(level)] = x[:, :, : _cells(height, stride), : _cells(width, stride)]
            yield numbers, self.fpn(own)

    def _maps(self, images: ImageList) -> list[Tensor]:
        x, sizes = images.tensors, [tuple(size) for size in images.image_sizes]
        if isinstance(self.net, SoftmaxFreeFeatures) and set(sizes) != {tuple(x.shape[-2:])}:
            maps = self.net(x, mask=mask_of_sizes(sizes, *x.shape[-2:]))
        else:
            maps = self.net(x)
        return [maps[level] for level in self.levels]


def _cells(pixels: int, stride: int) -> int:
    return -(-pixels // stride)


class Transform(GeneralizedRCNNTransform):
    """Normalises, in evaluation resizes, and pads; refuses images that the backbone cannot take.

    Args:
        size: shorter and longer side of an image in evaluation, pixels.
        mean: of the colours.
        std: of the colours.
        min_img_size: of the backbone.
    """

    def __init__(self, size: tuple[int, int], mean: Any, std: Any, min_img_size: int) -> None:
        super().__init__(*size, mean, std, _skip_resize=True)  # in training
        self.min_img_size = min_img_size

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, Any]:
        """Resizes an image in evaluation, as torchvision's; raises InputError if one side is too small then."""
        if not self.training:
            shape = resized_shape(image.shape[-2], image.shape[-1], (self.min_size[-1], self.max_size))
            self._check((shape[0], shape[1]))
        return super().resize(image, target)

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Pads images to one size, as torchvision's; raises InputError if one is too small."""
        for image in images:
            self._check((image.shape[-2], image.shape[-1]))
        return super().batch_images(images, size_divisible)

    def _check(self, shape: tuple[int, int]) -> None:
        if min(shape) < self.min_img_size:
            raise InputError(
                f"images: one is {shape[0]}x{shape[1]} pixels (for inference after resizing by min_size and max_size), "
                f"but the backbone needs {self.min_img_size} or more"
            )


class Anchors(AnchorGenerator):
    """Anchors at the true strides, in float32; torchvision guesses strides from the padding, and keeps the device.

    Args:
        head: "retinanet", with three scales an octave, or "mask_rcnn".
        sizes: side, pixels, of the anchors of each level.
    """

    def __init__(self, head: str, sizes: Sequence[int]) -> None:
        octaves = (0, 1 / 3, 2 / 3) if head == "retinanet" else (0,)
        scales = tuple(tuple(int(size * 2**octave) for octave in octaves) for size in sizes)
        super().__init__(scales, ((0.5, 1.0, 2.0),) * len(sizes))
        self.strides = STRIDES[head]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Returns the anchors `(n, 4)` of each image, all alike."""
        anchors = []
        for x, stride, cell in zip(feature_maps, self.strides, self.cell_anchors, strict=True):
            rows, columns = (torch.arange(n, device=x.device) * stride for n in x.shape[-2:])
            y, x_ = torch.meshgrid(rows, columns, indexing="ij")
            centres = torch.stack((x_, y, x_, y), -1).view(-1, 1, 4)
            anchors.append((centres + cell.to(x.device, non_blocking=True)).view(-1, 4))
        return [torch.cat(anchors)] * len(image_list.image_sizes)

    def lengths(self, feature_maps: list[Tensor]) -> list[int]:
        """Returns the number of anchors of each level."""
        per_cell = self.num_anchors_per_location()
        return [n * x.shape[-2] * x.shape[-1] for n, x in zip(per_cell, feature_maps, strict=True)]


class RoIAlign(MultiScaleRoIAlign):
    """RoIAlign at the true scales, which torchvision guesses from the first batch.

    Args:
        output_size: side of what is cut out, cells.
    """

    def __init__(self, output_size: int) -> None:
        strides = STRIDES["mask_rcnn"][:4]
        super().__init__([str(i) for i in range(4)], output_size, sampling_ratio=2)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = LevelMapper(2, 5)

    def forward(self, x: Maps, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Returns `(n, C, output_size, output_size)`, as torchvision's."""
        return super().forward({name: _repeat_border(x[name]) for name in self.featmap_names}, boxes, image_shapes)


def _repeat_border(x: Tensor) -> Tensor:
    """Lets two more rows and columns repeat the last: RoIAlign makes a box one cell wide at least."""
    x = torch.cat([x, x[:, :, -1:].expand(-1, -1, 2, -1)], 2)
    return torch.cat([x, x[:, :, :, -1:].expand(-1, -1, -1, 2)], 3)
