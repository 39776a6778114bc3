"""A model as what is exported: images in, tensors out, in one graph for every size."""

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softmaxfree.errors import InputError
from softmaxfree.layers.landmarks import pooling_matrix
from softmaxfree.models.backbone import AbstractBackbone
from softmaxfree.models.detection import Detector
from softmaxfree.models.exchange import exchanged
from softmaxfree.models.features import SoftmaxFreeFeatures
from softmaxfree.models.segmentation import Segmenter

__all__ = ["Program", "program_of"]

_SMALLEST = 33  # pixels: up to 32 the coarsest map has one cell, which torch.export takes for a constant
_LARGEST = 16384


class Program(NamedTuple):
    """What is exported.

    Attributes:
        module: takes `x (B, C, height, width)` in float32, normalised, and `mask (B, height, width)` bool where there
            is one; returns a tensor or a list of them.
        exact: the same with the model's own weights in float32, to compare with.
        inputs: their names.
        outputs: their names.
        in_chans: channels of the images.
        budget: height and width in pixels up to which no landmarks are averaged; of a model without a budget those of
            its usual image.
        cell: pixels a side of what becomes one landmark.
        smallest: height and width that it takes.
        step: of heights and widths that it takes.
        kind: "classification", "features" or "segmentation".
    """

    module: nn.Module
    exact: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_chans: int
    budget: tuple[int, int]
    cell: int
    smallest: int
    step: int
    kind: str

    @property
    def shapes(self) -> dict[str, dict[int, Any]]:
        """Names of the inputs' sizes that vary, as `torch.export` takes them."""
        batch = torch.export.Dim("batch", min=1)
        least, most = -(-self.smallest // self.step), _LARGEST // self.step
        sides = [torch.export.Dim(name, min=least, max=most) for name in ("height", "width")]
        height, width = (side if self.step == 1 else self.step * side for side in sides)
        return {"x": {0: batch, 2: height, 3: width}} | (
            {"mask": {0: batch, 1: height, 2: width}} if "mask" in self.inputs else {}
        )


def program_of(model: nn.Module, *, features: bool = False, mask: bool = False, half: bool = False) -> Program:
    """Return what is exported of a model.

    Args:
        model: a classifier of timm, a `features_only` network, a `Segmenter` or a `Detector`; it stays as it is.
        features: take the feature maps of its backbone in place of its result.
        mask: take a mask of valid pixels too.
        half: weights and activations in float16; kernel and inverse compute in float32 all the same.

    Returns:
        The program, in evaluation mode.

    Raises:
        InputError: the model has no such output or takes no mask.
    """
    if isinstance(model, Detector) and not features:
        raise InputError(
            "a detector cannot be exported: the choice of boxes (NMS) and, of Mask R-CNN, the regions cut out by them "
            "(RoIAlign) are missing; features exports the feature maps of its backbone"
        )
    if features and isinstance(model, Detector | Segmenter):
        model = model.network.backbone.net if isinstance(model, Detector) else model.backbone
    net: Any = getattr(model, "model", model) if isinstance(model, SoftmaxFreeFeatures) else model
    kind = "segmentation" if isinstance(model, Segmenter) else "classification"
    if features or (hasattr(model, "feature_info") and not hasattr(model, "forward_head")):
        kind = "features"
    if mask and (kind == "segmentation" or not isinstance(net, AbstractBackbone)):
        why = "a segmenter pads its images itself" if kind == "segmentation" else "it is no backbone of this package"
        raise InputError(f"mask: {type(net).__name__} takes no mask: {why}")
    backbone: Any = getattr(model.backbone, "model", model.backbone) if isinstance(model, Segmenter) else net
    count = 1 if kind != "features" else len(_maps_of(model))
    exact = _Outputs(model, kind).eval()
    module: nn.Module = _with_exact_pooling(exact)
    module = _Half(copy.deepcopy(module).half()) if half else module
    outputs = {"classification": ("logits",), "segmentation": ("logits",)}.get(
        kind, tuple(f"map{i}" for i in range(count))
    )
    budget, cell = _budget(backbone)
    step = _step(backbone)
    return Program(
        module.eval(),
        exact,
        ("x", "mask") if mask else ("x",),
        outputs,
        getattr(backbone, "in_chans", None) or 3,
        budget,
        cell,
        max(-(-_SMALLEST // step) * step, 3 * step, getattr(backbone, "min_img_size", 1)),
        step,
        kind,
    )


def _with_exact_pooling(module: nn.Module) -> nn.Module:
    """The same in which adaptive pooling, which ONNX gets wrong at other sizes, is a product with matrices."""
    if not any(isinstance(own, nn.AdaptiveAvgPool2d) for own in module.modules()):
        return module
    module = copy.deepcopy(module)
    for own in module.modules():
        if isinstance(own, nn.AdaptiveAvgPool2d):
            size: Any = own.output_size if isinstance(own.output_size, tuple) else (own.output_size,) * 2
            vars(own)["forward"] = partial(_pooled, size=size)  # UPerNet keeps its layers in a list too
    return module


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling `(B, C, Y, X)` to `(B, C, *size)`."""
    rows, columns = (pooling_matrix(n, to, x) for n, to in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.mT


class _Outputs(nn.Module):
    """Calls a model for what is exported of it."""

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        given = {} if mask is None else {"mask": mask}
        if self.kind == "segmentation":
            return self.model.forward_batch(x)
        if self.kind == "features" and hasattr(self.model, "forward_intermediates"):
            return list(self.model.forward_intermediates(x, intermediates_only=True, **given))
        out = self.model(x, **given)
        return list(out) if self.kind == "features" else out


class _Half(nn.Module):
    """A network in float16 between float32 images and results."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        out = self.inner(x.half(), mask)
        return [each.float() for each in out] if isinstance(out, list) else out.float()


def _maps_of(model: Any) -> list[Any]:
    info = model.feature_info
    return list(info if isinstance(info, list) else info.channels())


def _step(backbone: Any) -> int:
    """Of what heights and widths are multiples: of a plain ViT of timm the side of a patch."""
    embed: Any = getattr(backbone, "patch_embed", None)
    if isinstance(backbone, AbstractBackbone) or not hasattr(backbone, "dynamic_img_size"):
        return 1
    if not backbone.dynamic_img_size:
        raise InputError(
            f"a {type(backbone).__name__} of one image size cannot be exported for every size: make it with "
            "dynamic_img_size=True"
        )
    return int(max(embed.patch_size))


def _budget(backbone: Any) -> tuple[tuple[int, int], int]:
    """Height and width of an image that fill the landmark budget, and the side of what becomes one landmark."""
    if isinstance(backbone, AbstractBackbone):
        for group, info in zip(backbone.mixer_groups, backbone.feature_info, strict=False):
            own: Any = group[0] if group else None
            grid = getattr(own, "landmark_grid", None)
            if isinstance(grid, list | tuple) and len(grid) == 2:
                cell = info["reduction"] * getattr(getattr(own, "landmarks", own), "ratio", 1)
                return (grid[0] * cell, grid[1] * cell), cell
    if own := exchanged(backbone):
        grid, cell = getattr(own[-1].mixer, "landmark_grid", None), backbone.feature_info[-1]["reduction"]
        if isinstance(grid, list | tuple) and len(grid) == 2:
            return (grid[0] * cell, grid[1] * cell), cell
    config = getattr(backbone, "pretrained_cfg", None) or {}
    height, width = tuple(config.get("input_size") or (3, 224, 224))[1:]
    return (height, width), 32
