"""Semantic segmentation: any backbone of timm under UPerNet, Semantic FPN or a decoder of segmentation_models_pytorch.

UPerNet is that of transformers (mmsegmentation's, with its auxiliary head); all else is segmentation_models_pytorch's.
"""

import difflib
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from softmaxfree.errors import InputError
from softmaxfree.layers.inference import is_seen
from softmaxfree.models.creation import check_name, check_start, create_model
from softmaxfree.models.features import SoftmaxFreeFeatures, backbone_groups, backbone_no_weight_decay, slim_width
from softmaxfree.models.inputs import mask_of_sizes
from softmaxfree.models.parts import Parts
from softmaxfree.models.semantic_fpn import can_decode, decode
from softmaxfree.models.windows import bands, largest

__all__ = ["STRIDE", "Segmenter", "heads"]

_BACKBONE = "encoder.model."  # prefix of the names of its weights
STRIDE = 32
"""Images are padded to multiples of it: the coarsest stride of backbones and decoders."""

_AUXILIARY_MAP = 2  # the third feature map, as mmsegmentation

_OF_EACH_CLASS = (nn.Identity, nn.Upsample, nn.Sigmoid, nn.Tanh)
_Modules = tuple[nn.Module, nn.Module, nn.Module | None]  # encoder, head, auxiliary head


def heads() -> tuple[str, ...]:
    """Returns the names of all heads."""
    import segmentation_models_pytorch as smp

    # its DPT is for plain ViTs; its UPerNet has no auxiliary head
    others = [name for name in smp.MODEL_ARCHITECTURES_MAPPING if name not in ("dpt", "upernet")]
    return "upernet", "semantic_fpn", *others


class Segmenter(nn.Module):
    """Finds the class of each pixel: images of any sizes to logits at those sizes.

    Images are normalised and padded at the bottom and right. Our backbones are told what is padding, so that it leaves
    no trace in their features. The heads cannot be told: their convolutions, norms and pooling see padded cells. So
    `forward` runs images together only if they are padded to one size, the next multiples of 32 of their own: an
    image's logits are then the same alone and in any batch. `forward_train` pads all of them to the largest.

    Args:
        head: `"upernet"`, `"semantic_fpn"` (segmentation_models_pytorch's FPN), or another name of `heads()`.
        backbone: model of timm that takes `features_only`, ours included.
        num_classes: of the labels.
        model_args: further arguments of the backbone, such as `pretrained` or `drop_path_rate`.
        head_args: further arguments of the head: fields of transformers' `UperNetConfig` such as `hidden_size`, or
            arguments of the class of segmentation_models_pytorch such as `decoder_pyramid_channels`. "auto" makes
            UPerNet and Semantic FPN as slim as the backbone (`slim_width`), and leaves other decoders as they are.

    Raises:
        InputError: there is no such head, backbone or argument.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        head: str,
        backbone: str,
        num_classes: int,
        *,
        model_args: dict[str, Any] | None = None,
        head_args: dict[str, Any] | Literal["auto"] | None = None,
    ) -> None:
        super().__init__()
        if head not in heads():
            close = difflib.get_close_matches(head, heads())
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(heads())}"
            raise InputError(f"head: there is no head {head!r}; {hint}")
        check_name(backbone)
        model_args = dict(model_args or {})
        check_start(model_args)
        if (channels := model_args.pop("in_chans", 3)) != 3:  # a saved model tells it, and the encoders set it
            raise InputError(f"model_args.in_chans must be 3, got {channels}")
        build = _upernet if head == "upernet" else _of_smp
        try:
            if head_args == "auto":
                head_args = _slim(head, backbone, model_args)
            self.head_args = dict(head_args or {})
            modules = build(head, backbone, num_classes, model_args, self.head_args)
        except TypeError as error:  # an argument that neither of the two has
            raise InputError(f"model_args or head_args of {backbone} under {head}: {error}") from error
        self.encoder, self.head, self.auxiliary_head = modules
        strides = self.backbone.feature_info.reduction()
        if head == "semantic_fpn" and strides[-4:] != [4, 8, 16, 32]:
            allowed = "leave stem_stride and output_stride out, or take another head such as upernet"
            raise InputError(
                f"model_args: semantic_fpn needs maps of strides 4, 8, 16, 32, {backbone} makes {strides}: {allowed}"
            )
        config = resolve_model_data_config(self.backbone)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

    @property
    def backbone(self) -> Any:
        """timm's `features_only` network."""
        return self.encoder.model

    @property
    def parts(self) -> Parts:
        """Names of its backbone, and of the layers that depend on the classes."""
        if isinstance(self.head, nn.Sequential):
            return Parts(_BACKBONE, ("head.1",))  # of segmentation_models_pytorch: decoder, then the last layer
        return Parts(_BACKBONE, ("head.head.classifier", "auxiliary_head.head.classifier"))

    def forward(self, images: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Returns the logits of each image, which depend on no other image.

        Args:
            images: `(3, h, w)` each, in [0, 1], of any sizes from 32 up.

        Returns:
            Logits `(num_classes, h, w)`, float32, one of each image.

        Raises:
            InputError: an image is too small or of another shape.
        """
        if not len(images):
            return []
        self._check(images)
        logits: list[Tensor] = [torch.empty(0)] * len(images)
        for group in _groups_of_one_size(images):
            batch = [images[i] for i in group]
            for i, own in zip(group, _cropped(self._logits(self._maps(batch)), batch), strict=True):
                logits[i] = own
        return logits

    def forward_train(self, images: Sequence[Tensor] | Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the logits of head and auxiliary head, for training: as `forward`, but all images are one batch.

        Args:
            images: as for `forward`.

        Returns:
            Two lists of logits; the second is empty where there is no auxiliary head.

        Raises:
            InputError: an image is too small or of another shape.
        """
        self._check(images)
        # a batch norm needs two values a channel, of which pooling leaves one an image: an image alone comes twice
        batch = [images[0], images[0]] if len(images) == 1 else images
        maps = self._maps(batch)
        auxiliary = _cropped(self.auxiliary_head(maps), batch) if self.auxiliary_head is not None else []
        return _cropped(self.head(maps), batch)[: len(images)], auxiliary[: len(images)]

    def forward_batch(self, x: Tensor) -> Tensor:
        """Returns the logits of images of one size, for exported programs; otherwise `forward` is for use.

        Args:
            x: normalised images `(B, 3, h, w)`.

        Returns:
            Logits `(B, num_classes, h, w)`, float32, as those of `forward`.
        """
        height, width = x.shape[-2:]
        down, right = (_multiple(side) - side for side in (height, width))
        padded = F.pad(x, (0, right, 0, down))
        if isinstance(self.backbone, SoftmaxFreeFeatures):
            mask = F.pad(torch.ones_like(x[:, 0], dtype=torch.bool), (0, right, 0, down))
            stubs = (padded.new_empty(x.shape[0], 0, 1, 1) for _ in range(2))
            maps = [*stubs, *self.backbone(padded, mask=mask)]
        else:
            maps = self.encoder(padded)
        logits = self._logits(maps).float()
        logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear")
        return logits[:, :, :height, :width]

    @torch.inference_mode()
    def predict_classes(
        self,
        image: Tensor,
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
    ) -> Tensor:
        """Returns the class of each pixel of an image of any size, in little memory.

        The classes are those of `forward`, or with a window of `slide`; but the logits are never all there at the
        resolution of the image.

        Args:
            image: `(3, h, w)`, float in [0, 1] or uint8.
            window: height and width of windows that slide over the image, pixels; None takes it whole.
            stride: from one window to the next; None is two thirds of the window.

        Returns:
            `(h, w)`: uint8 of up to 256 classes, else int16.

        Raises:
            InputError: the network is in training mode, the image is too small or of another shape, or the stride
                would leave gaps.
        """
        if self.training:
            raise InputError("predict_classes needs the network in evaluation mode: call eval() first")
        self._check([image if image.dtype != torch.uint8 else image[..., :1].float().expand(image.shape)])
        if window is not None:
            stride = stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
            return torch.cat([largest(band) for band in bands(self, image, window, stride)])
        coarse, finish = self._coarse_logits(self._maps([image]))
        if not _keeps_classes_apart(finish):
            coarse, finish = finish(coarse), nn.Identity()
        return largest(_cropped(finish(one), [image])[0][0] for one in coarse.split(1, 1))

    def _logits(self, maps: list[Tensor]) -> Tensor:
        coarse, finish = self._coarse_logits(maps)
        return finish(coarse)

    def _coarse_logits(self, maps: list[Tensor]) -> tuple[Tensor, nn.Module]:
        """The logits before the head enlarges them, and how it does; `maps` may be empty afterwards."""
        head: Any = self.head
        if not _is_of_smp(head):
            return head(maps), nn.Identity()
        decoder, segmentation_head = head
        convolution, *rest = segmentation_head.children()
        return convolution(decode(decoder, maps) if can_decode(decoder) else decoder(maps)), nn.Sequential(*rest)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes parts of the backbone in the backward pass: of ours each block."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns the backbone's groups for layer-wise decay, or raises InputError; the heads follow the last one."""
        return backbone_groups(self.backbone, _BACKBONE, coarse)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the backbone's weights that do not decay."""
        return backbone_no_weight_decay(self.backbone, _BACKBONE)

    def _maps(self, images: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Feature maps of all images as one batch."""
        sizes = [tuple(image.shape[-2:]) for image in images]
        height, width = (_multiple(max(side)) for side in zip(*sizes, strict=True))
        ours = isinstance(self.backbone, SoftmaxFreeFeatures)
        order = torch.channels_last if ours else torch.contiguous_format  # else ours would copy the images
        x = torch.empty(
            len(sizes),
            len(self.mean),
            height,
            width,
            dtype=self.mean.dtype,
            device=self.mean.device,
            memory_format=order,
        ).zero_()
        for i, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
            part = x[i, :, :h, :w].copy_(image)
            (part if image.is_floating_point() else part.div_(255)).sub_(self.mean).div_(self.std)
        if not ours:
            return self.encoder(x)
        mask = None if set(sizes) == {(height, width)} else mask_of_sizes(sizes, height, width)
        # as the encoder, which takes no mask, does; but no head looks at the image, which so is freed
        stubs = (x.new_empty(len(x), 0, height // stride, width // stride) for stride in (1, 2))
        return [*stubs, *self.backbone(x, mask=mask)]

    def _check(self, images: Sequence[Tensor] | Tensor) -> None:
        if not len(images):
            raise InputError("images must hold at least one image")
        minimum = max(STRIDE, getattr(getattr(self.backbone, "model", None), "min_img_size", 0))
        for i, image in enumerate(images):
            shape = tuple(image.shape)
            if len(shape) != 3 or shape[0] != len(self.mean) or not image.is_floating_point():
                raise InputError(
                    f"images[{i}] must be float ({len(self.mean)}, height, width), got {image.dtype} {shape}"
                )
            if min(shape[1:]) < minimum:
                raise InputError(f"images[{i}] must be at least {minimum}x{minimum} pixels, got {shape[1:]}")


def _is_of_smp(head: nn.Module) -> bool:
    """Whether a head is decoder and last layers as segmentation_models_pytorch has them, and none looks at it."""
    if type(head) is not nn.Sequential or len(head) != 2:
        return False
    from segmentation_models_pytorch.base import SegmentationHead

    return type(head[1]) is SegmentationHead and not is_seen(head, head[1])


def _keeps_classes_apart(layers: nn.Module) -> bool:
    """Whether what stands behind the last convolution can be done class by class."""
    own = [layer for layer in layers.modules() if not [*layer.children()]]
    return all(type(layer) in _OF_EACH_CLASS for layer in own) and not is_seen(*layers.modules())


def _slim(head: str, backbone: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Widths of a head that is as slim as its backbone."""
    if head not in ("upernet", "semantic_fpn"):
        return {}
    start = ("pretrained", "checkpoint_path")
    net = create_model(backbone, features_only=True, **{k: v for k, v in model_args.items() if k not in start})
    width = slim_width(net)
    if head == "upernet":
        return {"hidden_size": width, "auxiliary_channels": width}
    # its group norms have 32 groups
    return {"decoder_pyramid_channels": width, "decoder_segmentation_channels": max(32, width // 64 * 32)}


def _upernet(_: str, backbone: str, num_classes: int, model_args: dict, head_args: dict) -> _Modules:
    from segmentation_models_pytorch.encoders import TimmUniversalEncoder
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    if unknown := [name for name in head_args if not hasattr(UperNetConfig(), name)]:
        raise TypeError(f"UperNetConfig has no {unknown[0]!r}")
    config = UperNetConfig(**head_args | {"num_labels": num_classes})
    encoder = TimmUniversalEncoder(backbone, pretrained=model_args.pop("pretrained", False), **model_args)
    channels = encoder.out_channels[-4:]
    auxiliary = UperNetFCNHead(config, channels, in_index=_AUXILIARY_MAP) if config.use_auxiliary_head else None
    return encoder, _OnLastMaps(UperNetHead(config, channels)), auxiliary and _OnLastMaps(auxiliary)


class _OnLastMaps(nn.Module):
    """Leaves out what the encoder returns before the maps of strides 4 to 32."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.head(maps[-4:])


def _of_smp(head: str, backbone: str, num_classes: int, model_args: dict, head_args: dict) -> _Modules:
    import segmentation_models_pytorch as smp

    model = smp.create_model(
        "fpn" if head == "semantic_fpn" else head,
        f"tu-{backbone}",
        encoder_weights=True if model_args.pop("pretrained", False) else None,  # False would mean True
        classes=num_classes,
        **model_args,
        **head_args,
    )
    return model.encoder, nn.Sequential(model.decoder, model.segmentation_head), None


def _multiple(size: int) -> int:
    return (size + STRIDE - 1) // STRIDE * STRIDE


def _groups_of_one_size(images: Sequence[Tensor] | Tensor) -> list[list[int]]:
    """Numbers of the images that are padded to one size."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault((_multiple(image.shape[-2]), _multiple(image.shape[-1])), []).append(i)
    return list(groups.values())


def _cropped(logits: Tensor, images: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """Each image's own part of the logits of a batch, at the resolution of the images."""
    sizes = [image.shape[-2:] for image in images]
    padded = [_multiple(max(side)) for side in zip(*sizes, strict=True)]
    logits = logits.float()
    if list(logits.shape[-2:]) != padded:
        logits = F.interpolate(logits, size=padded, mode="bilinear")
    return [own[:, :h, :w] for own, (h, w) in zip(logits, sizes, strict=True)]
