"""Layers that map each patch to the width of a network, before patches see each other."""

from typing import Any

import torch
from torch import Tensor, nn

from softmaxfree.arguments import require, require_known, require_number, require_whole
from softmaxfree.layers.linear import Linear
from softmaxfree.ops import transforms
from softmaxfree.ops.precision import widen

__all__ = ["LeNet", "activation", "make_embedding"]

_ACTS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "none": nn.Identity}
_SIDE = 28
_AT_ONCE = 1024  # digits that inference convolves


class LeNet(nn.Module):
    """Two convolutions and a linear layer for digits of 28 x 28 pixels (Ilse et al., 2018, table 6).

    Args:
        embed_dim: outputs.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.linear = Linear(50 * 4 * 4, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps pixels `(..., 784)`, row by row, to `(..., embed_dim)`."""
        images = x.reshape(-1, 1, _SIDE, _SIDE).to(self.linear.weight.dtype)
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or transforms.at_work()
        parts = [images] if whole else images.split(_AT_ONCE)
        return torch.cat([self.linear(self.convolutions(part).flatten(1)).relu() for part in parts]).view(
            *x.shape[:-1], -1
        )


class _Wide(nn.Module):
    """Features as they are, in float32 where they are narrower."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., D)` to the same."""
        return widen(x)


class _Widened(Linear):
    """A linear layer that takes features of any float dtype, such as float16 from a file."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., in_features)` to `(..., out_features)`."""
        return super().forward(x.to(self.weight.dtype))


def activation(name: str) -> nn.Module:
    """Makes an activation.

    Args:
        name: "relu", "gelu", "silu" or "none".

    Returns:
        The module.

    Raises:
        InputError: there is none of that name.
    """
    require_known("act", name, _ACTS)
    return _ACTS[name]()


def make_embedding(
    embed: str | nn.Module, in_dim: int, embed_dim: int, *, layers: int = 1, act: str = "relu", dropout: float = 0.0
) -> nn.Module:
    """Makes the embedding of a network.

    Args:
        embed: "linear": linear layers with an activation; "lenet": for digits of 784 pixels; or a module that maps
            `(..., in_dim)` to `(..., embed_dim)`.
        in_dim: width of the features.
        embed_dim: width of the network.
        layers: of "linear": how many, each followed by the activation; 0 for the features as they are.
        act: of "linear": see `activation`.
        dropout: of "linear": behind each activation but the last; with one layer, behind that. Of "lenet": behind it.

    Returns:
        The module.

    Raises:
        InputError: for an argument out of range.
    """
    require_whole("in_dim", in_dim, 1)
    require_whole("embed_dim", embed_dim, 1)
    require_whole("embed_layers", layers, 0)
    require_number("dropout", dropout, 0, below=1)
    require(embed == "linear" or layers == 1, "embed_layers", layers, "left out where embed is not 'linear'")
    if isinstance(embed, nn.Module):
        return embed
    require(embed in ("linear", "lenet"), "embed", embed, "'linear', 'lenet' or a module")
    if embed == "lenet":
        require(in_dim == _SIDE**2, "in_dim", in_dim, f"{_SIDE**2}, pixels of a digit, with embed='lenet'")
        return nn.Sequential(LeNet(embed_dim), nn.Dropout(dropout)) if dropout else LeNet(embed_dim)
    if layers == 0:
        require(in_dim == embed_dim, "embed_layers", layers, "1 or more where in_dim is not embed_dim")
        return _Wide()
    parts: list[Any] = []
    for i in range(layers):
        if i:
            parts.append(nn.Dropout(dropout))
        parts += [_Widened(in_dim if i == 0 else embed_dim, embed_dim), activation(act)]
    return nn.Sequential(*parts, *([nn.Dropout(dropout)] if layers == 1 else []))
