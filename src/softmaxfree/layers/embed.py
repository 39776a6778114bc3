"""From pixels to tokens: overlapping stem, downsampling between stages, learned position tables."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, register_notrace_module, trunc_normal_
from torch import Tensor, nn
from torch.types import Device


def stem(in_chans: int, dim: int, *, width: int = 32, **factory: Any) -> nn.Sequential:
    """Returns three 3x3 conv-BN-ReLU of strides 2, 1, 2: `(B, in_chans, h, w)` to `(B, dim, ~h/4, ~w/4)`."""
    return nn.Sequential(
        ConvNormAct(in_chans, width, 3, stride=2, bias=True, **factory),
        ConvNormAct(width, width, 3, bias=True, **factory),
        ConvNormAct(width, dim, 3, stride=2, bias=True, **factory),
    )


def downsample(in_dim: int, dim: int, **factory: Any) -> nn.Sequential:
    """Returns one 3x3 conv-BN-ReLU of stride 2: `(B, in_dim, Y, X)` to `(B, dim, ~Y/2, ~X/2)`."""
    return nn.Sequential(ConvNormAct(in_dim, dim, 3, stride=2, bias=True, **factory))


@register_notrace_module
class PositionTable(nn.Module):
    """Learned position embedding on a grid, bilinearly resampled where the token grid has another size.

    Args:
        dim: channels `C`.
        grid: rows and columns `(Y, X)` of the stored table.
        device: of the table.
        dtype: of the table.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim, device=device, dtype=dtype))
        self._cached: tuple[tuple, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table from a truncated normal of deviation 0.02."""
        trunc_normal_(self.table, std=0.02)

    def forward(self, height: int, width: int) -> Tensor:
        """Returns the positions of a `height x width` grid, `(1, height * width, C)`."""
        if torch.jit.is_scripting():
            return self.resample(height, width)
        else:
            return self._look_up(height, width)

    @torch.jit.unused
    def _look_up(self, height: int, width: int) -> Tensor:
        if torch.compiler.is_exporting():
            return self.resample(height, width)  # a shortcut for equal sizes would pin the exported size
        if (height, width) == self.grid:
            return self.table
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.table.is_inference():
            return self.resample(height, width)
        # the version counts in-place updates (optimizer steps, load_state_dict)
        key = (height, width, self.table.data_ptr(), self.table.dtype, self.table.device, self.table._version)
        if self._cached is None or self._cached[0] != key:
            self._cached = key, self.resample(height, width)
        return self._cached[1]

    def resample(self, height: int, width: int) -> Tensor:
        """Returns the table, interpolated to `height x width` in float32."""
        table = self.table.float().view(1, self.grid[0], self.grid[1], -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=[height, width], mode="bilinear", align_corners=False)
        return table.flatten(2).transpose(1, 2).to(self.table.dtype)
