"""Softmax-free attention layer: projections, landmarks, value convolution (SOFT, section 3; SOFT++, section 3)."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_whole
from softmaxfree.errors import InputError
from softmaxfree.layers.embed import feature_map
from softmaxfree.layers.landmarks import Landmarks, Sampling
from softmaxfree.ops import AbstractPinvSolver, Newton
from softmaxfree.ops.nystrom import nystrom

register_notrace_function(nystrom)

_DEFAULT = Newton()


class SoftmaxFreeAttention(nn.Module):
    """Multi-head self-attention with a Gaussian kernel, linear in the number of tokens.

    Keys are tied to queries, which are scaled by `D^(-1/4)`, so that the kernel is `exp(-|q_i - q_j|^2 / (2 sqrt(D)))`.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        ratio: side of the window of tokens that one landmark stands for.
        value_kernel: odd side of the convolution of the values that is added to the output, one filter for each head
            (released code); 0: none.
        landmark_sampling: see `Landmarks`.
        landmark_grid: landmark budget, see `Landmarks`.
        solver: inverts the landmark kernel matrix.
        normalize: the symmetric normalisation of SOFT++.
        ndim: 1 for sequences, 2 for images.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ratio: int,
        *,
        value_kernel: int = 3,
        landmark_sampling: Sampling = "conv",
        landmark_grid: tuple[int, ...] | None = (16, 16),
        solver: AbstractPinvSolver = _DEFAULT,
        normalize: bool = False,
        ndim: int = 2,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_whole("dim", dim, 1)
        require_whole("num_heads", num_heads, 1)
        if dim % num_heads:
            raise InputError(f"num_heads must divide the width {dim}, got {num_heads}")
        require_whole("value_kernel", value_kernel, 0)
        require(value_kernel == 0 or value_kernel % 2 == 1, "value_kernel", value_kernel, "odd, or 0 for none")
        require(isinstance(normalize, bool), "normalize", normalize, "True or False")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.25
        self.normalize = normalize
        self.q = nn.Linear(dim, dim, **factory)
        self.v = nn.Linear(dim, dim, **factory)
        self.landmarks = Landmarks(
            self.head_dim, ratio, sampling=landmark_sampling, max_grid=landmark_grid, ndim=ndim, **factory
        )
        conv = nn.Conv2d if ndim == 2 else nn.Conv1d
        self.value_conv = (
            conv(num_heads, num_heads, value_kernel, padding="same", groups=num_heads, bias=False, **factory)
            if value_kernel
            else None
        )
        self.proj = nn.Linear(dim, dim, **factory)
        self.set_solver(solver)

    def set_solver(self, solver: AbstractPinvSolver) -> None:
        """Changes how the landmark kernel matrix is inverted."""
        require(isinstance(solver, AbstractPinvSolver), "solver", solver, "a solver; `as_solver` makes one")
        self.solver = solver
        self._solver_json = solver.json  # TorchScript knows strings, not solvers

    def forward(self, x: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Attends.

        Args:
            x: tokens `(B, N, C)`, row-major on the grid.
            grid: sizes of the token grid, product `N`.
            mask: `(B, *grid)` bool, True where a token is valid: the valid tokens of each image, which must be its
                first in every axis, attend as if they were alone. The others must be finite.

        Returns:
            `(B, N, C)`; arbitrary but finite in the padding.
        """
        heads = [self.num_heads, self.head_dim]
        q = self.q(x).mul_(self.scale).unflatten(-1, heads).transpose(1, 2)
        values = self.v(x)
        landmark_mask: Tensor | None = None
        if mask is not None:
            values = values.masked_fill(~mask.flatten(1).unsqueeze(-1), 0.0)  # a key counts only through its value
            landmark_mask = self.landmarks.valid(mask)
        v = values.unflatten(-1, heads).transpose(1, 2)
        landmarks = self.landmarks(q, grid, mask).to(q.dtype)
        out = nystrom(q, None, v, landmarks, self._solver_json, self.normalize, None, landmark_mask)
        out = out.transpose(1, 2).flatten(2)
        if self.value_conv is not None:
            out = self._convolve(values, grid).add_(out)
        return self.proj(out)

    def _convolve(self, values: Tensor, grid: list[int]) -> Tensor:
        """Returns the values `(B, N, C)` convolved on the grid; all channels of a head share its filter."""
        assert self.value_conv is not None
        weight = self.value_conv.weight.repeat_interleave(self.head_dim, 0)
        image = feature_map(values, grid)
        if len(grid) == 1:
            image = F.conv1d(image, weight, padding="same", groups=image.shape[1])
        else:
            image = F.conv2d(image, weight, padding="same", groups=image.shape[1])
        return image.flatten(2).transpose(1, 2)
