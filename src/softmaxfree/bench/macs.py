"""Multiply-adds of a network, as it computes and as the papers count."""

import copy
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from softmaxfree.layers import Landmarks
from softmaxfree.models.evaluation import evaluation

__all__ = ["macs"]


def macs(model: nn.Module, img_size: tuple[int, int]) -> dict[str, int]:
    """Count the multiply-adds of one image.

    Args:
        model: a classifier, best on the meta device, where nothing is computed.
        img_size: height and width in pixels.

    Returns:
        `conv_linear`: convolutions and linear layers; `executed`: these and every matrix product, kernel
        product and inverse that this library computes; `published`: the released formulation as papers count.
    """
    executed = _flops(model, img_size, {})
    released = copy.deepcopy(model)
    for module in released.modules():
        if isinstance(module, Landmarks):
            module.set_max_grid(None)  # its landmarks grow with the image
    published = _flops(released, img_size, _PUBLISHED)
    layers = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)
    return {
        "conv_linear": sum(executed.get(op, 0) for op in layers) // 2,
        "executed": sum(executed.values()) // 2,
        "published": sum(published.values()) // 2,
    }


def _flops(model: nn.Module, img_size: tuple[int, int], formulas: dict) -> dict:
    device = next(model.parameters()).device
    image = torch.empty(1, getattr(model, "in_chans", 3), *img_size, device=device)
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with torch.no_grad(), counter, evaluation(model):
        model(image)
    return counter.get_flop_counts()["Global"]


def _published_product(x_shape, y_shape, z_shape, v_shape, *args, out_shape=None, **kwargs) -> int:
    """FLOPs of a released attention, but for `K(l, l)`, which is counted as a product of its own.

    A head of the released code computes K(q, l) with 3 products N M D (|q|^2, |l|^2 and q l, by matrices of
    ones), K A+ with N M^2, K^T v and (K A+)(K^T v) with N M D each, and the squares of K(l, l) with 2 M^2 D.
    """
    *heads, n, width = x_shape
    m = y_shape[-2]
    return 2 * prod(heads) * (5 * n * m * width + n * m * m + 2 * m * m * width)


def _uncounted(*args, out_shape=None, **kwargs) -> int:
    return 0  # the released inverse hides in an autograd function, where the papers' counter does not look


_PUBLISHED = {
    torch.ops.softmaxfree.gaussian_tied_product: _published_product,
    torch.ops.softmaxfree.pinv: _uncounted,
}
