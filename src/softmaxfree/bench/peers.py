"""What this package is timed against, as modules: an attention is called with `q, v, landmarks`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.layers import attention as attention_layer
from softmaxfree.ops import nystrom_attention


class SoftmaxFree(nn.Module):
    """This package's attention."""

    def forward(self, q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
        return nystrom_attention(q, q, v, landmarks)


class Published(nn.Module):
    """The formulation of the released code: whole kernel matrices, 20 Newton steps, the left product first."""

    def forward(self, q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
        return published(q, v, landmarks)


class FourProducts(nn.Module):
    """The products that softmax-free attention cannot do without, alone, on kernel matrices that are there."""

    def __init__(self) -> None:
        super().__init__()
        self._kernel = self._transposed = torch.empty(0)

    def forward(self, q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
        if self._kernel.shape[:-1] != q.shape[:-1]:  # in the first call, which is never timed
            self._kernel = torch.rand(*q.shape[:-1], landmarks.shape[-2], dtype=q.dtype, device=q.device)
            self._transposed = self._kernel.transpose(-1, -2).contiguous()
        _ = q @ landmarks.transpose(-1, -2), landmarks @ q.transpose(-1, -2)
        return self._kernel @ (self._transposed @ v)


class Softmax(nn.Module):
    """Softmax attention by torch, quadratic in the tokens."""

    def forward(self, q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, v)


class EluLinear(nn.Module):
    """Linear attention with the feature map `elu + 1` (Katharopoulos et al., 2020)."""

    def forward(self, q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
        features = F.elu(q) + 1
        total = features @ features.sum(-2, keepdim=True).transpose(-1, -2)
        return features @ (features.transpose(-1, -2) @ v) / total


class Nystromformer(nn.Module):
    """The package nystrom-attention. It projects tokens itself, so their sum stands for `q` and `v`."""

    def __init__(self, heads: int, width: int, landmarks: int) -> None:
        super().__init__()
        from nystrom_attention import NystromAttention

        self.attention = NystromAttention(
            heads * width, dim_head=width, heads=heads, num_landmarks=landmarks, residual=False
        )

    def forward(self, q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
        out = self.attention((q + v).transpose(1, 2).flatten(2))
        return out.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)


class Performer(nn.Module):
    """The package performer-pytorch: random features of the softmax kernel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        from performer_pytorch import FastAttention

        self.attention = FastAttention(width)

    def forward(self, q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
        return self.attention(q, q, v)


class WithPublishedAttention(nn.Module):
    """A model of this package that computes its attention by the published formulation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        before = attention_layer.nystrom
        attention_layer.nystrom = lambda q, k, v, landmarks, *rest: published(q, v, landmarks)
        try:
            return self.model(images)
        finally:
            attention_layer.nystrom = before


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
