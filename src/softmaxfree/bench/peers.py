"""What is timed, as modules: an attention is called with `q, v`."""

import functools
import math
import os
from typing import Any
from unittest import mock

import torch
from timm.layers import Attention, GELUTanh
from torch import Tensor, nn

from softmaxfree.layers.landmarks import Landmarks
from softmaxfree.mixers import AbstractMixer, SoftmaxFreeAttention
from softmaxfree.models.stages import Stage
from softmaxfree.ops import AbstractPinvSolver, dispatch, pinv


class Mix(nn.Module):
    """The step of a mixer between its projections: `mix`, with keys tied to queries, on a square grid."""

    def __init__(self, mixer: AbstractMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        return self.mixer.mix(q, q, v, square(q))


class Published(nn.Module):
    """The formulation of the released code: whole kernel matrices, 20 Newton steps, the left product first."""

    def __init__(self, landmarks: Landmarks) -> None:
        super().__init__()
        self._landmarks = landmarks

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        return published(q, v, self._landmarks(q, square(q)))


def square(q: Tensor) -> list[int]:
    """Returns the grid of tokens `(B, H, N, D)`, N a square."""
    return [math.isqrt(q.shape[2])] * 2


class Inverse(nn.Module):
    """This package's inverse of landmark kernel matrices; `way` forces one of the ways to take Newton's steps."""

    def __init__(self, solver: AbstractPinvSolver, way: str = "auto") -> None:
        super().__init__()
        self._solver, self._way = solver, way

    def forward(self, gram: Tensor) -> Tensor:
        with mock.patch.dict(os.environ, {dispatch.variable("newton"): self._way}):
            return pinv(gram, self._solver)


class FourProducts(nn.Module):
    """The products that softmax-free attention cannot do without, alone, on kernel matrices that are there."""

    def __init__(self, landmarks: int) -> None:
        super().__init__()
        self._landmarks = landmarks
        self._kernel = self._transposed = torch.empty(0)

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        landmarks = q[:, :, : self._landmarks]
        if self._kernel.shape[:-1] != q.shape[:-1]:  # in the first call, which is never timed
            self._kernel = torch.rand(*q.shape[:-1], self._landmarks, dtype=q.dtype, device=q.device)
            self._transposed = self._kernel.transpose(-1, -2).contiguous()
        _ = q @ landmarks.transpose(-1, -2), landmarks @ q.transpose(-1, -2)
        return self._kernel @ (self._transposed @ v)


class PublishedModel(nn.Module):
    """A model of this package that computes as the released code does, with its weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for module in model.modules():
            changed: Any = module
            if isinstance(module, SoftmaxFreeAttention):
                changed.forward = functools.partial(_published_layer, module)
            if isinstance(module, Stage):
                changed.forward = functools.partial(_published_stage, module)
            if isinstance(module, GELUTanh):
                changed.forward = _published_gelu
            if isinstance(module, Attention):
                changed.fused_attn = False

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def _published_stage(stage: Stage, x: Tensor) -> Tensor:
    """Computes a stage as released: channels first in memory, and positions resampled in each call."""
    x = stage.embed(x)
    grid = list(x.shape[-2:])
    tokens = x.flatten(2).transpose(1, 2) + stage.pos_embed.resample(*grid)
    for block in stage.blocks:
        tokens = block(tokens, grid)
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()


def _published_layer(layer: SoftmaxFreeAttention, x: Tensor, grid: list[int], mask: None = None) -> Tensor:
    """Computes a layer as released: a convolution of each head for landmarks, one of each channel for values."""
    q, v = (z(x).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for z in (layer.q, layer.v))
    q = q * layer.scale
    sampling: Any = layer.landmarks
    landmarks = sampling.conv(q.flatten(0, 1).unflatten(1, grid).permute(0, 3, 1, 2))
    landmarks = landmarks.flatten(2).unflatten(0, q.shape[:2]).transpose(-1, -2)
    out = published(q, v, sampling.act(sampling.norm(landmarks)))
    channels = v.permute(0, 3, 1, 2).flatten(0, 1).unflatten(-1, grid)  # (B D, H, Y, X)
    assert layer.value_conv is not None
    out = out + layer.value_conv(channels).flatten(2).unflatten(0, (len(x), -1)).permute(0, 2, 3, 1)
    return layer.proj(out.transpose(1, 2).flatten(2))


def _published_gelu(x: Tensor) -> Tensor:
    """Computes GELU as released: its approximation by tanh, operation by operation."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def published(q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
    """Returns softmax-free attention as the released code computes it."""
    kernel = torch.exp(-_squared_distances(q, landmarks) / 2)
    inverse = _NewtonInverse.apply(torch.exp(-_squared_distances(landmarks, landmarks) / 2))
    return (kernel @ inverse) @ (kernel.transpose(-1, -2) @ v)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    x2 = (x**2) @ torch.ones_like(y).transpose(-1, -2)
    y2 = torch.ones_like(x) @ (y**2).transpose(-1, -2)
    return x2 + y2 - 2 * (x @ y.transpose(-1, -2))


class _NewtonInverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:
        p = a + 0.01 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        v = 1.8 / a.sum(-1).amax(-1)[..., None, None] ** 2 * p
        for _ in range(20):
            v = 2 * v - v @ p @ v
        ctx.save_for_backward(v)
        return v

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (v,) = ctx.saved_tensors
        return -(v.transpose(-1, -2) @ grad @ v.transpose(-1, -2))
