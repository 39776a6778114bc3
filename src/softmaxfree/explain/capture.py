"""Runs a network up to one attention and takes what reaches it; no hook outlives the call."""

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models.davit import ChannelAttention, ChannelAttentionV2
from timm.models.xcit import XCA
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from softmaxfree.errors import InputError
from softmaxfree.explain.layers import Layer, backbone_of
from softmaxfree.images import resized_shape
from softmaxfree.mixers import AbstractMixer
from softmaxfree.models.evaluation import evaluation
from softmaxfree.models.exchange import ExchangedAttention

__all__ = ["Captured", "capture", "prepared", "run", "seen_size", "visit"]


class Captured(NamedTuple):
    """Queries and keys `(1, H, N, D)` of an attention, and where its tokens lie.

    `grid` are rows and columns of the tokens behind the `prefix` ones. `mask` is as `AbstractMixer.mix` takes it; of
    softmax it is what `scaled_dot_product_attention` takes, and `scale` what its logits are multiplied by.
    """

    q: Tensor
    k: Tensor
    grid: tuple[int, int]
    prefix: int
    mask: Tensor | None
    scale: float | None = None


def prepared(model: nn.Module, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Returns the image `(1, C, H, W)` where the model is, and the mask `(1, H, W)`.

    Args:
        model: the network.
        image: `(C, H, W)` or `(1, C, H, W)`.
        mask: `(H, W)` or `(1, H, W)` bool; None for no padding.

    Returns:
        Both with a batch of one.

    Raises:
        InputError: for other shapes.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = f"{image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"image must be a float tensor, prepared for the model, got {kind}")
    shape = tuple(image.shape)
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1 or not image.numel():
        raise InputError(f"image must be one image (C, H, W) or (1, C, H, W), got {shape}")
    if mask is not None:
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.dtype != torch.bool or mask.shape != (1, *image.shape[-2:]):
            raise InputError(f"mask must be bool {tuple(image.shape[-2:])}, got {mask.dtype} {tuple(mask.shape)}")
    like = next(model.parameters())
    return image.to(like.device, like.dtype), mask


def seen_size(model: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Returns height and width of an image as the backbone sees it: a detector resizes it."""
    network: Any = getattr(model, "network", None)
    if hasattr(network, "transform"):
        return resized_shape(height, width, (network.transform.min_size[-1], network.transform.max_size))
    return height, width


def run(model: nn.Module, x: Tensor, mask: Tensor | None = None) -> Any:
    """Returns what a network makes of an image `(1, C, H, W)`; detectors and segmenters take lists of images."""
    if hasattr(model, "parts"):  # a detector or segmenter of this package
        if mask is not None:
            raise InputError("mask must be None: detectors and segmenters pad their images themselves")
        return model([x[0]])
    try:
        return model(x) if mask is None else model(x, mask=mask)
    except AssertionError as error:  # timm's, of an image whose size the network does not take
        raise InputError(f"image of {tuple(x.shape[-2:])} pixels: {error}") from error


class _Reached(Exception):
    """Ends the network where the asked layer begins."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]) -> None:
        self.inputs = args, kwargs


def capture(model: nn.Module, layer: Layer, x: Tensor, mask: Tensor | None = None) -> Captured:
    """Runs a network without gradients up to a layer, and returns its queries and keys.

    Args:
        model: the network.
        layer: one of its attentions.
        x: image `(1, C, H, W)`.
        mask: `(1, H, W)` bool, True where a pixel is valid.

    Returns:
        What the layer mixes.

    Raises:
        InputError: the layer does not compute an attention between all tokens of the image.
    """
    thread, sizes = threading.get_ident(), [x.shape[-2:]]

    def sees(module: nn.Module, args: tuple) -> None:
        if threading.get_ident() == thread and args and isinstance(args[0], Tensor):
            sizes[0] = args[0].shape[-2:]

    def reached(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            raise _Reached(args, kwargs)

    backbone = backbone_of(model)[1]
    handles = [
        backbone.register_forward_pre_hook(sees),
        layer.module.register_forward_pre_hook(reached, with_kwargs=True),
    ]
    inputs: tuple[tuple, dict[str, Any]] | None = None
    with evaluation(model), torch.no_grad():
        try:
            run(model, x, mask)
        except _Reached as at:
            inputs = at.inputs
        finally:
            for handle in handles:
                handle.remove()
        if inputs is None:
            raise InputError(f"{layer.name} takes no part in what {type(model).__name__} makes of an image")
        if layer.mixer is not None:
            return _of_mixer(layer, *inputs)
        return _of_softmax(layer, *inputs, sizes[0])


def visit(
    model: nn.Module,
    layers: Sequence[Layer],
    x: Tensor,
    mask: Tensor | None,
    look: Callable[[Layer, Captured], None],
) -> None:
    """Runs a network once, without gradients, and shows queries and keys of several mixers as they come.

    Args:
        model: the network.
        layers: of it; mixers of this package.
        x: image `(1, C, H, W)`.
        mask: `(1, H, W)` bool, True where a pixel is valid.
        look: is called with each layer and what it mixes.
    """
    thread = threading.get_ident()

    def shown(layer: Layer) -> Callable[[nn.Module, tuple, dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == thread:
                look(layer, _of_mixer(layer, args, kwargs))

        return hook

    handles = [layer.module.register_forward_pre_hook(shown(layer), with_kwargs=True) for layer in layers]
    try:
        with evaluation(model), torch.no_grad():
            run(model, x, mask)
    finally:
        for handle in handles:
            handle.remove()


def _of_mixer(layer: Layer, args: tuple, kwargs: dict[str, Any]) -> Captured:
    if isinstance(layer.module, ExchangedAttention):
        q, k, _, (rows, columns) = layer.module.inputs(*args, **kwargs)
        if q.shape != k.shape:
            raise InputError(f"{layer.name} is a mixer without maps: its keys are fewer than its queries")
        return Captured(q, k, (rows, columns), q.shape[2] - rows * columns, None)
    mixer = cast(AbstractMixer, layer.mixer)
    given = dict(zip(("x", "grid", "mask"), args, strict=False)) | kwargs
    x, grid, mask = given["x"], given["grid"], given.get("mask")
    mixer.check(x, grid, mask)
    q, k, _ = mixer.project(x)
    rows, columns = grid
    return Captured(q, k, (rows, columns), q.shape[2] - rows * columns, mask)


_OF_CHANNELS = (XCA, ChannelAttention, ChannelAttentionV2)
"""Attention of channels to each other; by the shapes alone it looks like that of as many tokens."""


class _Intercept(TorchFunctionMode):
    """Keeps what an attention calls `scaled_dot_product_attention` with; zeros are the result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
        self.calls.append(given)
        return given["query"].new_zeros(*given["query"].shape[:-1], given["value"].shape[-1])


def _of_softmax(layer: Layer, args: tuple, kwargs: dict[str, Any], size: Sequence[int]) -> Captured:
    fused: Any = copy.copy(layer.module)  # has its weights, and leaves the module of the network as it is
    fused.fused_attn = True
    with _Intercept() as intercept:
        fused(*args, **kwargs)
    rows, columns = (-(-side // layer.stride) for side in size)
    given: Any = intercept.calls[0] if len(intercept.calls) == 1 else {}  # of two only the network knows the sum
    q: Any = given.get("query")
    k: Any = given.get("key")
    whole = q is not None and k is not None and q.shape == k.shape and len(q) == 1 and q.ndim == 4
    whole = whole and not isinstance(layer.module, _OF_CHANNELS)
    # more tokens than cells are prefix tokens, or what a window was padded with
    if not whole or q.shape[2] - rows * columns not in layer.prefixes or given.get("is_causal"):
        raise InputError(
            f"{layer.name} ({type(layer.module).__name__}) is a mixer without maps: it is no softmax attention of all "
            f"{rows * columns} tokens to each other"
        )
    scale = given.get("scale")
    return Captured(
        q,
        k,
        (rows, columns),
        q.shape[2] - rows * columns,
        given.get("attn_mask"),
        q.shape[-1] ** -0.5 if scale is None else scale,
    )
