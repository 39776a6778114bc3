"""The transformer block around a token mixer: mixer and feed-forward part, each with a residual sum and LayerNorm."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.fx import Proxy
from torch.types import Device

from softmaxfree.arguments import require, require_known, require_number, require_whole
from softmaxfree.layers.feed_forward import feed_forward, sees_tokens_apart
from softmaxfree.layers.inference import is_plain_inference, is_seen

_FEED_FORWARD = ("mlp_ratio", "mlp", "act", "num_features")

# of the hidden features that inference holds at once: what caches hold, and what keeps a GPU busy
_CPU_HIDDEN_BYTES, _HIDDEN_BYTES = 1 << 22, 1 << 26


class Block(nn.Module):
    """Transformer block: post-norm as in SOFT (section 3.3), or pre-norm as in ViTs.

    Args:
        mixer: mixes the tokens, such as `softmaxfree.mixers.create_mixer` makes; its `dim` is the width `C`.
        norm: `"post"`: LayerNorm after each residual sum; `"pre"`: before each branch.
        mlp_ratio: hidden width of the feed-forward part over `C`.
        mlp: `"mlp"`: two linear layers; `"snnk"`: kernel features in the place of the first, see `KernelMlp`.
        act: activation between the linear layers: `"polynorm"`, see `PolyNorm`, `"gelu_tanh"`, `"gelu"`, `"relu"`,
            `"silu"`, `"mish"` or `"quick_gelu"`.
        num_features: number of kernel features; 0 for `C`.
        drop_path: probability that an image skips a branch in training (stochastic depth; the released code drops
            single elements under this name).
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        mixer: Any,
        *,
        norm: Literal["post", "pre"] = "post",
        mlp_ratio: float = 4.0,
        mlp: Literal["mlp", "snnk"] = "mlp",
        act: str = "gelu_tanh",
        num_features: int = 0,
        drop_path: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_number("mlp_ratio", mlp_ratio, 0)
        require_whole("num_features", num_features, 0)
        require_number("drop_path", drop_path, 0, below=1)
        require(norm in ("post", "pre"), "norm", norm, "'post' or 'pre'")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        dim = mixer.dim
        self.attn = mixer
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        hidden = int(dim * mlp_ratio)
        require(hidden >= 1, "mlp_ratio", mlp_ratio, f"enough for one hidden feature of {dim}")
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.mlp = feed_forward(mlp, dim, hidden, act, num_features, **factory)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **factory)
        self.norm_first = norm == "pre"
        self._hidden_width = max(hidden, num_features)

    def forward(self, x: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Maps tokens `(B, N, C)` on a grid, valid where `mask (B, *grid)` is True, to `(B, N, C)`."""
        if self.norm_first:
            x = x + self.drop_path1(self.attn(self.norm1(x), grid, mask))
        else:
            x = self.norm1(x + self.drop_path1(self.attn(x, grid, mask)))
        in_chunks = is_plain_inference() and not self.training and not isinstance(x, Proxy)
        return self._in_chunks(x) if in_chunks else self._feed_forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            return x + self.drop_path2(self.mlp(self.norm2(x)))
        return self.norm2(x + self.drop_path2(self.mlp(x)))

    def _in_chunks(self, x: Tensor) -> Tensor:
        """Returns `_feed_forward`, in which tokens do not see each other, without all hidden features at once."""
        hidden_bytes = _CPU_HIDDEN_BYTES if x.device.type == "cpu" else _HIDDEN_BYTES
        most = max(1, hidden_bytes // (self._hidden_width * x.element_size()))
        own = sees_tokens_apart(self.mlp) and type(self.norm2) is nn.LayerNorm
        whole = not own or self.drop_path2.training or is_seen(self.norm2, self.drop_path2, *self.mlp.modules())
        if whole or x.shape[0] * x.shape[1] <= most:  # a hook gets all tokens, as in training
            return self._feed_forward(x)
        tokens = x.flatten(0, 1).split(most)
        return torch.cat([self._feed_forward(chunk) for chunk in tokens]).view_as(x)


def block_arguments(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the arguments of the feed-forward part of `Block`: those given, and the defaults of the others.

    Args:
        given: some of them; None for none.

    Returns:
        All of them.

    Raises:
        InputError: there is no such argument.
    """
    require(given is None or isinstance(given, Mapping), "block_args", given, "a dict")
    given = dict(given or {})
    for key in given:
        require_known("block_args", key, _FEED_FORWARD)
    parameters = inspect.signature(Block.__init__).parameters
    return {key: parameters[key].default for key in _FEED_FORWARD} | given
