"""Class activation maps of classifiers, detections and segments, through pytorch-grad-cam."""

import importlib
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require, require_known, require_whole
from softmaxfree.errors import InputError
from softmaxfree.explain.capture import prepared, run, seen_size
from softmaxfree.explain.layers import backbone_of, require_place
from softmaxfree.models.evaluation import evaluation

__all__ = ["METHODS", "Activation", "class_activation"]

METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "eigengradcam": "EigenGradCAM",
}
"""Methods by name, and their classes in pytorch-grad-cam; each needs one forward and one backward pass."""


class Activation(NamedTuple):
    """What raises a score: `pixels` `(H, W)` from 0 to 1, the largest being 1; all 0 where nothing raises it.

    `target` is the class, or of a detector the number of the detection, whose class is `label`; `score` is the output
    that was followed: a logit, the mean logit of a segment, or the score of a detection with its `box`. The map of
    `layer` has `cells`, rows and columns; between them `pixels` are interpolated.
    """

    pixels: Tensor
    target: int
    label: int
    score: float
    layer: str
    method: str
    cells: tuple[int, int]
    box: tuple[float, float, float, float] | None = None


def class_activation(
    model: nn.Module,
    image: Tensor,
    target: int | None = None,
    *,
    method: Literal["gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "eigengradcam"] = "gradcam",
    stage: int = -1,
    layer: str | None = None,
) -> Activation:
    """Returns which pixels raise the score of a class, a segment or a detection (Selvaraju et al., ICCV 2017).

    Layer and shapes are found by themselves: of a pyramid the last map, of a plain transformer the tokens that enter
    its last block. Gradients of the model's weights, and whether they are wanted, stay as they are.

    Args:
        model: a classifier of timm, or a detector or segmenter of this package.
        image: `(C, H, W)` or `(1, C, H, W)`, prepared for the model; of detectors and segmenters in [0, 1].
        target: number of a class; of a detector that of a detection, best first. None: the likeliest class, the
            largest segment, the best detection.
        method: how activations and gradients make a map.
        stage: number of the feature map: of a stage of a pyramid, of a block of a plain transformer. Earlier ones are
            finer, and tell less of the class.
        layer: name of another module in its place, with a map `(1, C, Y, X)` or tokens `(1, N, C)`.

    Returns:
        The map and what it is of.

    Raises:
        InputError: there is no such target, method or layer; nothing is detected.
        ModuleNotFoundError: pytorch-grad-cam is not installed.
    """
    require_known("method", method, METHODS)
    if target is not None:
        require_whole("target", target, 0)
    if getattr(model, "num_classes", None) == 0:
        raise InputError("model must have a head: without one there is no class whose score could be followed")
    prefix, backbone = backbone_of(model)
    name = _map_layer(prefix, backbone, stage) if layer is None else layer
    modules = dict(model.named_modules())
    require_known("layer", name, modules)
    x, _ = prepared(model, image)
    cam: Any = getattr(importlib.import_module("pytorch_grad_cam"), METHODS[method])
    size = x.shape[-2:]
    seen = seen_size(model, *size)
    stride = _stride(backbone, name.removeprefix(f"{prefix}."))
    shape, cells = list(seen), [0, 0]

    def as_map(output: Any) -> Tensor:
        whole = _as_map(output, shape, stride, name, str(getattr(backbone, "output_fmt", "NCHW")) == "NHWC")
        cells[:] = (min(-(-side // stride), own) for side, own in zip(seen, whole.shape[2:], strict=True))
        return whole[:, :, : cells[0], : cells[1]]

    network, score = _Network(model), _Score(target)

    def sees(module: nn.Module, args: tuple) -> None:
        if args and isinstance(args[0], Tensor):
            shape[:] = args[0].shape[-2:]

    handle = backbone.register_forward_pre_hook(sees)
    try:
        with torch.inference_mode(False), evaluation(model), _frozen(model), torch.enable_grad():
            maps = cam(network, [modules[name]], reshape_transform=as_map)
            try:
                maps.compute_input_gradient = True  # as no weight asks for a gradient
                # at the size of the cells, of which the last ones may reach beyond the image, or end before it
                maps.get_target_width_height = lambda _: (cells[1] * stride, cells[0] * stride)
                values = maps(x.clone() if x.is_inference() else x, [score])
            except AttributeError as error:  # of gradients that are not there
                raise InputError(f"layer {name!r} takes no part in the score") from error
            finally:
                maps.activations_and_grads.release()
    finally:
        handle.remove()
    whole = torch.as_tensor(values)[:, None, : seen[0], : seen[1]]
    whole = F.pad(whole, (0, seen[1] - whole.shape[3], 0, seen[0] - whole.shape[2]), mode="replicate")
    if tuple(whole.shape[-2:]) != tuple(size):
        whole = F.interpolate(whole, size=tuple(size), mode="bilinear")
    grid = cells[0], cells[1]
    return Activation(whole[0, 0], score.target, score.label, score.value, name, method, grid, score.box)


def _as_map(output: Any, shape: Sequence[int], stride: int, name: str, channels_last: bool) -> Tensor:
    """Returns what a module makes as `(1, C, Y, X)`: channels are first or last, or tokens of the grid are the last.

    Where both fit, as of 16 channels on 16 x 16 cells, `channels_last` decides.
    """
    # with the cell that is cut off at the end, or, as convolutions without padding have it, without
    sides = [{-(-side // stride), max(side // stride, 1)} for side in shape]
    if isinstance(output, Tensor) and output.ndim == 4:
        orders = (0, 1, 2, 3), (0, 3, 1, 2)
        for order in reversed(orders) if channels_last else orders:
            own = output.permute(order)
            if own.shape[2] in sides[0] and own.shape[3] in sides[1]:
                return own
    grid = [max(side) for side in sides]
    if isinstance(output, Tensor) and output.ndim == 3 and output.shape[1] >= math.prod(grid):
        return output[:, output.shape[1] - math.prod(grid) :].mT.unflatten(2, grid)
    kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise InputError(f"layer {name!r} must make a map of {grid[0]} x {grid[1]} cells, got {kind}")


class _Network(nn.Module):
    """Runs a network for pytorch-grad-cam, which would otherwise throw away the gradients of its weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Any:
        return run(self.model, x)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing."""

    def train(self, mode: bool = True) -> "_Network":
        return self


class _Score:
    """The output whose gradient is followed, of what a network makes of one image."""

    def __init__(self, target: int | None) -> None:
        self.given = target
        self.target = self.label = 0
        self.value = 0.0
        self.box: tuple[float, float, float, float] | None = None

    def __call__(self, output: Any) -> Tensor:
        if isinstance(output, dict):
            score = self._detection(output)
        else:
            if output.ndim not in (1, 3):
                raise InputError(f"model must return logits of classes, got {tuple(output.shape)} for an image")
            score = self._segment(output) if output.ndim == 3 else self._class(output)
        self.value = float(score.detach())
        return score

    def _class(self, logits: Tensor) -> Tensor:
        self.target = self.label = int(logits.argmax()) if self.given is None else self.given
        _require_target(self.target, len(logits), "class")
        return logits[self.target]

    def _segment(self, logits: Tensor) -> Tensor:
        classes = logits.detach().argmax(0)
        counts = classes.flatten().bincount(minlength=len(logits))
        self.target = self.label = int(counts.argmax()) if self.given is None else self.given
        _require_target(self.target, len(logits), "class")
        if not counts[self.target]:
            found = ", ".join(map(str, counts.nonzero().flatten().tolist()))
            raise InputError(f"target must be a class that the image has, which are {found}; got {self.target}")
        return logits[self.target][classes == self.target].mean()

    def _detection(self, found: dict[str, Tensor]) -> Tensor:
        if not len(found["scores"]):
            raise InputError("image must hold an object that the model detects, it detects none")
        self.target = self.given or 0
        _require_target(self.target, len(found["scores"]), "detection")
        self.label = int(found["labels"][self.target])
        left, top, right, bottom = found["boxes"][self.target].tolist()
        self.box = left, top, right, bottom
        return found["scores"][self.target]


def _require_target(target: int, count: int, what: str) -> None:
    require(target < count, "target", target, f"the number of a {what}, 0 to {count - 1}")


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No weight gets a gradient, which also spares their memory."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _map_layer(prefix: str, backbone: Any, stage: int) -> str:
    """The module of a map; of a transformer block its first norm: behind the last one patches may no longer matter."""
    modules = dict(backbone.named_modules())
    info = getattr(backbone.feature_info, "info", backbone.feature_info)
    require_place("stage", stage, len(info))
    last = info[stage]["module"]
    # wrappers of timm name modules otherwise, and put them one level deeper
    name = next((own for own in modules if re.fullmatch(rf"(?:model\.)?{re.escape(last)}", own)), None)
    name = name or next((own for own in modules if own == last.replace(".", "_")), "")
    kind = type(backbone).__name__
    if not name:
        raise InputError(f"stage {stage} of {kind} has its map in no module of that name, {last}; give layer")
    if (
        hasattr(backbone, "reroll") and info[stage] is not info[-1]
    ):  # Hiera: its tokens lie in the order of their pooling
        raise InputError(
            f"stage must be the last one of {kind}, whose earlier tokens are in another order; got {stage}"
        )
    if hasattr(modules[name], "norm1") and hasattr(modules[name], "mlp"):
        name += ".norm1"
    return f"{prefix}.{name}" if prefix else name


def _stride(backbone: Any, name: str) -> int:
    info = getattr(backbone.feature_info, "info", backbone.feature_info)
    at = f"{name.removeprefix('model.')}.".replace("_", ".")
    inside = [entry for entry in info if at.startswith(f"{entry['module']}.".replace("_", "."))]
    return int((inside or info)[-1]["reduction"])
