"""The feed-forward part of a block: two linear layers, or kernel features in the place of the first."""

from typing import Any

import torch
from timm.layers import Mlp, get_act_layer
from timm.layers.activations import GELUTanh
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_known
from softmaxfree.layers.inference import is_plain_inference, is_seen
from softmaxfree.layers.linear import Linear, exchange_linear
from softmaxfree.ops.linear import linear
from softmaxfree.ops.precision import widen

_EPS = 1e-6
_ACTS = ("gelu_tanh", "gelu", "relu", "silu", "mish", "quick_gelu", "polynorm")


class PolyNorm(nn.Module):
    """`w_0 n(x^3) + w_1 n(x^2) + w_2 n(x) + b`, `n(u) = u / rms(u)` over the features (PolyCom, arXiv 2411.03884).

    Computes in float32 or wider, since cubes overflow in half precision.

    Args:
        device: of the weights.
        dtype: of the weights.
    """

    def __init__(self, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1 / 3, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., F)` to the same shape and dtype."""
        wide, (cubic, square, linear) = widen(x), widen(self.weight).unbind()
        out = cubic * _normed(wide**3) + square * _normed(wide.square()) + linear * _normed(wide) + widen(self.bias)
        return out.to(x.dtype)


def _normed(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + _EPS).rsqrt()


class KernelMlp(nn.Module):
    """A linear layer on ReLU features, then a linear layer: `fc2(phi(x) W^T)` (SNNK, arXiv 2310.13225).

    `phi(x) = relu(G x) / sqrt(F)` with fixed Gaussian `G (F, C)` takes the place of a hidden layer and its activation.
    It is cheaper where `F` is below `C`, and another function: the mean of `phi(x) . phi(w)` is the arc-cosine kernel
    of order 1, not `relu(w . x)`. `W` starts as the features of a linear layer's weights.

    Args:
        dim: channels `C`.
        hidden: outputs of the first layer.
        num_features: `F`.
        device: of the weights.
        dtype: of the weights.
    """

    projection_matrix: Tensor

    def __init__(
        self, dim: int, hidden: int, num_features: int, *, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_buffer("projection_matrix", torch.randn(num_features, dim, **factory))
        with torch.no_grad():
            self.weight = nn.Parameter(self.features(nn.Linear(dim, hidden, bias=False, **factory).weight))
        self.fc2 = Linear(hidden, dim, **factory)

    def features(self, x: Tensor) -> Tensor:
        """Maps `(..., C)` to `phi(x) (..., F)`."""
        return (x @ self.projection_matrix.T).relu() * self.projection_matrix.shape[0] ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., C)` to `(..., C)`."""
        return self.fc2(self.features(x) @ self.weight.T)


class FusedMlp(Mlp):
    """timm's `Mlp`, whose first layer and GELU are one operation in inference, unless a hook is between them.

    The arguments are those of timm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., C)` to `(..., C)`."""
        if not self._fuses(x):
            return super().forward(x)
        return self.drop2(self.fc2(linear(x, self.fc1.weight, self.fc1.bias, "gelu_tanh")))

    def _fuses(self, x: Tensor) -> bool:
        return (
            type(x) is Tensor
            and type(self.fc1) is Linear
            and type(self.act) is GELUTanh
            and is_plain_inference()
            and type(self.drop1) is nn.Dropout
            and not (self.drop1.training and self.drop1.p)
            and type(self.norm) is nn.Identity
            and not is_seen(self.fc1, self.act, self.drop1, self.norm)
        )


_OF_EACH_TOKEN = (
    FusedMlp, KernelMlp, PolyNorm, Linear, nn.Linear, nn.Identity, nn.Dropout, nn.LayerNorm,
    *(get_act_layer(name) for name in _ACTS if name != "polynorm"),
)  # fmt: skip


def sees_tokens_apart(mlp: nn.Module) -> bool:
    """Returns whether a feed-forward part gives a token the same whatever others are there, as far as is known."""
    return type(mlp) in (FusedMlp, KernelMlp) and all(type(part) in _OF_EACH_TOKEN for part in mlp.modules())


def feed_forward(kind: str, dim: int, hidden: int, act: str, num_features: int, **factory: Any) -> nn.Module:
    """Makes the feed-forward part of a block.

    Args:
        kind: "mlp": linear, activation, linear; "snnk": `KernelMlp`.
        dim: channels.
        hidden: hidden width.
        act: activation of "mlp": "polynorm", "gelu_tanh", "gelu", "relu", "silu", "mish" or "quick_gelu".
        num_features: of "snnk"; 0 for `dim`.
        **factory: device and dtype of the weights.

    Returns:
        The module.

    Raises:
        InputError: there is no such kind or activation, or an argument does not belong to the kind.
    """
    require(kind in ("mlp", "snnk"), "mlp", kind, "'mlp' or 'snnk'")
    require_known("act", act, _ACTS)
    if kind == "snnk":
        require(act == "gelu_tanh", "act", act, "left out: snnk has features in its place")
        return KernelMlp(dim, hidden, num_features or dim, **factory)
    require(num_features == 0, "num_features", num_features, "left out: only mlp='snnk' has features")
    mlp = FusedMlp(dim, hidden, act_layer=nn.Identity if act == "polynorm" else get_act_layer(act), **factory)
    if act == "polynorm":
        mlp.act = PolyNorm(**factory)
    return exchange_linear(mlp)
