"""What every token mixer is: projections around a pure function of queries, keys and values."""

import abc
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_odd, require_whole
from softmaxfree.errors import InputError
from softmaxfree.layers.embed import feature_map
from softmaxfree.layers.linear import Linear
from softmaxfree.ops.depthwise import depthwise
from softmaxfree.ops.precision import compute_dtype

_COMMON = ("self", "dim", "num_heads", "device", "dtype")  # told by the network, or by the weights' shapes


class AbstractMixer(nn.Module, abc.ABC):
    """Mixes tokens: `proj(mix(project(x)))`, and what a constructor adds to it.

    Tokens are row-major on a grid of one axis (a sequence) or two (an image). More tokens than cells are prefix tokens,
    such as a class token; they come first and are always valid.

    A subclass makes `proj`, all other weights, and if it has them `value_conv`, a convolution of the values on the grid
    that is added to the result, then `out_norm`, and `gate`, a function of the tokens that the result is multiplied by.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.

    Raises:
        InputError: for an argument out of range.
    """

    name: str = ""
    """In the registry."""
    source: str = ""
    """Paper, in short."""
    masks: bool = True
    """Takes a padding mask, and gives each image what it gets alone; else it refuses one."""
    ndims: tuple[int, ...] = (1, 2)
    """Axes that a grid may have."""
    prefix: bool = True
    """Takes prefix tokens."""
    linear: bool = True
    """Costs time and memory linear in the number of tokens."""
    linear_in_v: bool = True
    """`mix` is linear in `v`."""
    mixes: bool = True
    """Tokens see each other; else it is a control, and results should say so."""
    row_sum: float | None = None
    """What the weights of each query sum to, where that is the same for all."""
    approximates: str = ""
    """Name of the mixer whose result it comes near to, on the same queries, keys and values."""
    adjustable: tuple[str, ...] = ()
    """Arguments that `adjust` may change later; weights bring their own."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        require_whole("dim", dim, 1)
        require_whole("num_heads", num_heads, 1)
        if dim % num_heads:
            raise InputError(f"num_heads must divide the width {dim}, got {num_heads}")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.value_conv: Any = None
        self.out_norm: nn.Module | None = None
        self.gate: nn.Module | None = None
        self.proj: nn.Module

    @abc.abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes.

        A function of its arguments and of the mixer's weights alone, that owns no projection.

        Args:
            q: queries `(B, H, N, D)`, any float dtype.
            k: keys `(B, H, N, D)`.
            v: values `(B, H, N, E)`; of `activator`, `spatial_reduction` and `ttt`, `E` is `D`.
            grid: sizes of the token grid, one or two; the last `prod(grid)` of the `N` tokens lie on it.
            mask: `(B, *grid)` bool, True where a token is valid, the first of each axis. The others must be finite.

        Returns:
            `(B, H, N, E)` in the dtype of `v`; arbitrary but finite in the padding.
        """

    @abc.abstractmethod
    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to queries, keys and values, `(B, H, N, D)` each."""

    def forward(self, x: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Maps tokens to tokens.

        Args:
            x: tokens `(B, N, C)`.
            grid: as for `mix`.
            mask: as for `mix`.

        Returns:
            `(B, N, C)`; arbitrary but finite in the padding.

        Raises:
            InputError: the mixer cannot take such a grid or mask.
        """
        self.check(x, grid, mask)
        q, k, v = self.project(x)
        out = self.mix(q, k, v, grid, mask).transpose(1, 2).flatten(2)
        local = self.local(x, v, grid, mask)
        if local is not None:
            out = local.add_(out)
        if self.out_norm is not None:
            out = self.out_norm(out)
        if self.gate is not None:
            out = out * self.gate(x)
        return self.proj(out)

    def local(self, x: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor | None:
        """Returns what is added to the mixed tokens, `(B, N, C)`: the convolved values; None for nothing.

        The sum is written into it, so it must be a tensor that nobody else holds.
        """
        return None if self.value_conv is None else self.convolve(v, grid, mask)

    @property
    def min_grid(self) -> int:
        """Least number of tokens along each axis."""
        return 1

    def config(self) -> dict[str, Any]:
        """Returns all that the weights are tied to and their shapes do not tell: name and own arguments, plain data."""
        own = own_arguments(type(self))
        if unkept := [key for key in own if not hasattr(self, key)]:
            raise InputError(f"{type(self).__name__} must keep its argument {unkept[0]!r} as an attribute of that name")
        kept = {key: plain(getattr(self, key)) for key in own}
        absent = {key: False for key, p in own.items() if kept[key] is None and isinstance(p.default, bool)}
        return {"name": self.name} | kept | absent

    def adjust(self, **changes: Any) -> None:
        """Changes arguments among `adjustable`.

        Args:
            **changes: new values.

        Raises:
            InputError: there is no such argument, or the value is out of range.
        """
        for key, value in changes.items():
            require(key in self.adjustable, key, value, f"left as it is: {self.name} cannot change it later")
            setattr(self, key, value)

    def check(self, x: Tensor, grid: list[int], mask: Tensor | None) -> None:
        """Raises InputError unless the mixer can take tokens `(B, N, C)` on such a grid, with such a mask."""
        if torch.compiler.is_exporting():
            return
        cells = math.prod(grid)
        if len(grid) not in self.ndims:
            allowed = " or ".join(map(str, self.ndims))
            raise InputError(f"grid of {self.name} must have {allowed} axes, got {list(grid)}")
        if min(grid) < self.min_grid:
            raise InputError(f"grid of {self.name} must be at least {self.min_grid} in each axis, got {list(grid)}")
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise InputError(f"x must be tokens (B, N, {self.dim}), got {tuple(x.shape)}")
        if x.shape[1] < cells:
            raise InputError(f"x must have a token for each of the {cells} cells of {list(grid)}, got {x.shape[1]}")
        if x.shape[1] > cells and not self.prefix:
            raise InputError(
                f"x must have the {cells} tokens of the grid {list(grid)}, got {x.shape[1]}: "
                f"{self.name} takes no prefix tokens"
            )
        if mask is None:
            return
        if not self.masks:
            raise InputError(f"mask must be None: {self.name} cannot leave padding out exactly")
        expected = (x.shape[0], *grid)
        if mask.dtype != torch.bool or tuple(mask.shape) != expected:
            raise InputError(f"mask must be bool {expected}, got {mask.dtype} {tuple(mask.shape)}")

    def value_filters(self) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias of `value_conv` with a filter for each channel."""
        return self.value_conv.weight, self.value_conv.bias

    def convolve(self, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Returns values `(B, H, N, E)` convolved on the grid, `(B, N, H E)`; zero at prefix tokens."""
        if mask is not None:
            v = zero_tokens(v, mask)
        prefix = v.shape[2] - math.prod(grid)
        image = feature_map(v.transpose(1, 2).flatten(2)[:, prefix:], grid)
        weight, bias = self.value_filters()
        if len(grid) == 1 and weight.ndim == 4:
            weight = weight[:, :, weight.shape[2] // 2]  # a sequence sees the middle row
        out = depthwise(image, weight, bias).flatten(2).transpose(1, 2)
        return F.pad(out, (0, 0, prefix, 0)) if prefix else out


class AbstractAttention(AbstractMixer):
    """A mixer with the usual projections: queries, keys and values from one linear layer.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        qkv_bias: whether the projection of queries, keys and values has a bias.
        value_kernel: odd side of a depthwise convolution of the values that is added to the result (LePE); 0 for none.
        gate: whether the result is multiplied by a linear function of the tokens.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        value_kernel: int = 0,
        gate: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads)
        require_flag("qkv_bias", qkv_bias)
        require_flag("gate", gate)
        require_odd("value_kernel", value_kernel)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        if value_kernel:
            channels = self.value_filter_channels
            self.value_conv = nn.Conv2d(
                channels, channels, value_kernel, padding=value_kernel // 2, groups=channels, **factory
            )
        if gate:
            self.gate = Linear(dim, dim, **factory)
        self.proj = Linear(dim, dim, **factory)
        self.qkv_bias, self.value_kernel = qkv_bias, value_kernel

    @property
    def scale(self) -> float:
        """What logits are multiplied by, `D^(-1/2)`."""
        return self.head_dim**-0.5

    @property
    def value_filter_channels(self) -> int:
        """Number of filters of `value_conv`: one a channel; or one a channel of a head, the same for all heads."""
        return self.dim

    def value_filters(self) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias of `value_conv` with a filter for each channel."""
        weight, bias = super().value_filters()
        heads = self.dim // self.value_filter_channels
        if heads == 1:
            return weight, bias
        return weight.repeat(heads, *[1] * (weight.ndim - 1)), None if bias is None else bias.repeat(heads)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to queries, keys and values, `(B, H, N, D)` each."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def own_arguments(mixer: type[AbstractMixer]) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a mixer but width, heads, device and dtype: its own and those of `AbstractMixer`."""
    found: dict[str, inspect.Parameter] = {}
    for cls in mixer.__mro__:
        parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        found |= {key: p for key, p in parameters.items() if key not in (*_COMMON, *found) and p.kind != p.VAR_KEYWORD}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            break  # a constructor without **kwargs takes nothing further
    return found


def require_flag(name: str, value: object) -> None:
    """Raises InputError unless an argument is True or False."""
    require(isinstance(value, bool), name, value, "True or False")


def valid_tokens(mask: Tensor, tokens: int) -> Tensor:
    """Returns the mask `(B, *grid)` of all `tokens` tokens, `(B, N)`: prefix tokens are valid."""
    flat = mask.flatten(1)
    return F.pad(flat, (tokens - flat.shape[1], 0), value=True)


def zero_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Returns tokens `(B, N, C)` or `(B, H, N, D)` with zeros, also for NaN, where `mask (B, *grid)` is False."""
    valid = valid_tokens(mask, x.shape[-2]).unsqueeze(-1)
    return x.masked_fill(~(valid if x.ndim == 3 else valid.unsqueeze(1)), 0.0)


def num_valid(mask: Tensor | None, x: Tensor) -> Tensor | int:
    """Returns the number of valid tokens of `x (B, H, N, D)`: `N`, or with a mask `(B, 1, 1, 1)`, at least 1.

    Of the dtype that ops compute in: a whole number times a float would be float32 for float64 too.
    """
    if mask is None:
        return x.shape[-2]
    counts = valid_tokens(mask, x.shape[-2]).sum(1).clamp(min=1)
    return counts.to(compute_dtype(x.dtype))[:, None, None, None]


def log_num_valid(mask: Tensor | None, x: Tensor) -> Tensor:
    """Returns `ln num_valid(mask, x)` in the dtype that ops compute in; an exported program keeps it a function."""
    n = num_valid(mask, x)
    dtype = compute_dtype(x.dtype)
    return (n.to(dtype) if isinstance(n, Tensor) else x.new_full((), n, dtype=dtype)).log()


def plain(value: Any) -> Any:
    """Returns an argument as JSON knows it; True for a module, which an extra that is there is kept as."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    known = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    allowed = "a finite number, a text, True, False, None, or lists and dicts of them"
    require(known, "an argument of a mixer", value, allowed)
    return value
