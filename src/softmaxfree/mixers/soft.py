"""Softmax-free attention: a Gaussian kernel through landmarks (SOFT, section 3; SOFT++, section 3)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require_odd
from softmaxfree.layers.landmarks import Landmarks, Sampling
from softmaxfree.layers.linear import Linear
from softmaxfree.mixers.mixer import AbstractMixer, require_flag, valid_tokens
from softmaxfree.mixers.registry import register
from softmaxfree.ops import AbstractPinvSolver, Newton, as_solver
from softmaxfree.ops.nystrom import nystrom

_SOLVER, _GRID = Newton(), (8, 8)


@register
class SoftmaxFreeAttention(AbstractMixer):
    """Multi-head self-attention with a Gaussian kernel, linear in the number of tokens.

    Keys are tied to queries, which are scaled by `D^(-1/4)`, so that the kernel is `exp(-|q_i - q_j|^2 / (2 sqrt(D)))`.

    Args:
        dim: channels `C`.
        num_heads: `H`; divides `dim`.
        ratio: side of the window of tokens that one landmark stands for.
        value_kernel: odd side of the convolution of the values that is added to the output, one filter for each head
            (released code); 0: none.
        landmark_sampling: see `Landmarks`.
        landmark_grid: landmark budget, see `Landmarks`: one number for each axis of the grid. None or `"unbounded"`:
            no budget.
        solver: inverts the landmark kernel matrix: a solver, its `to_dict()`, or its name.
        normalize: the symmetric normalisation of SOFT++.
        ndim: 1 for sequences, 2 for images.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for an argument out of range.
    """

    name = "soft"
    source = "SOFT, NeurIPS 2021; SOFT++, IJCV 2024"
    approximates = "gaussian"
    adjustable = ("solver", "landmark_grid")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        ratio: int = 1,
        value_kernel: int = 3,
        landmark_sampling: Sampling = "conv",
        landmark_grid: Sequence[int] | Literal["unbounded"] | None = _GRID,
        solver: AbstractPinvSolver | Mapping[str, Any] | str = _SOLVER,
        normalize: bool = False,
        ndim: int = 2,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads)
        require_odd("value_kernel", value_kernel)
        require_flag("normalize", normalize)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.scale = self.head_dim**-0.25
        self.normalize, self.value_kernel, self.ndim = normalize, value_kernel, ndim
        self.ndims = (ndim,)  # the landmarks' filter fixes them
        if normalize:
            self.approximates = ""  # the kernel divided by sums over landmarks, of which there is no exact form
        self.q = Linear(dim, dim, **factory)
        self.v = Linear(dim, dim, **factory)
        self.landmarks = Landmarks(
            self.head_dim, ratio, sampling=landmark_sampling, max_grid=_as_grid(landmark_grid), ndim=ndim, **factory
        )
        if value_kernel:
            conv = nn.Conv2d if ndim == 2 else nn.Conv1d
            self.value_conv = conv(
                num_heads, num_heads, value_kernel, padding="same", groups=num_heads, bias=False, **factory
            )
        self.proj = Linear(dim, dim, **factory)
        self.adjust(solver=solver)

    @property
    def min_grid(self) -> int:
        """Least number of tokens along each axis: one window."""
        return self.ratio

    @property
    def ratio(self) -> int:
        """Side of the window of tokens that one landmark stands for."""
        return self.landmarks.ratio

    @property
    def landmark_sampling(self) -> str:
        """How landmarks are sampled."""
        return self.landmarks.sampling

    @property
    def landmark_grid(self) -> list[int] | Literal["unbounded"]:
        """The landmark budget."""
        return "unbounded" if self.landmarks.max_grid is None else self.landmarks.max_grid

    def adjust(self, **changes: Any) -> None:
        """Changes `solver` or `landmark_grid`, see the constructor.

        Args:
            **changes: new values.

        Raises:
            InputError: there is no such argument, or the value is out of range.
        """
        if "solver" in changes:
            self.solver = as_solver(changes.pop("solver"))
        if "landmark_grid" in changes:
            self.landmarks.set_max_grid(_as_grid(changes.pop("landmark_grid")))
        super().adjust(**changes)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps tokens `(B, N, C)` to queries, which are the keys too, and values, `(B, H, N, D)` each."""
        heads = (self.num_heads, self.head_dim)
        q = (self.q(x) * self.scale).unflatten(-1, heads).transpose(1, 2)
        return q, q, self.v(x).unflatten(-1, heads).transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: list[int], mask: Tensor | None = None) -> Tensor:
        """Mixes, see `AbstractMixer.mix`; landmarks are sampled from the queries on the grid."""
        prefix = q.shape[2] - math.prod(grid)
        landmarks = self.landmarks(q[:, :, prefix:] if prefix else q, grid, mask).to(q.dtype)
        valid = None if mask is None else valid_tokens(mask, q.shape[2])
        landmark_mask = None if mask is None else self.landmarks.valid(mask)
        return nystrom(q, None if k is q else k, v, landmarks, self.solver.json, self.normalize, valid, landmark_mask)

    def value_filters(self) -> tuple[Tensor, None]:
        """Returns the filter of each channel: all channels of a head share one."""
        return self.value_conv.weight.repeat_interleave(self.head_dim, 0), None


def _as_grid(landmark_grid: Sequence[int] | Literal["unbounded"] | None) -> tuple[int, ...] | None:
    if landmark_grid is None or landmark_grid == "unbounded":
        return None
    grid: Any = landmark_grid  # what are no numbers is refused where the budget is used
    return tuple(grid) if isinstance(grid, Sequence) else grid
