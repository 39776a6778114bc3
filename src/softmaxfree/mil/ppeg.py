"""The position encoding of TransMIL, on a square in file order or on the patches' own coordinates."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.arguments import require_whole

__all__ = ["PPEG"]

_REACH = 3  # cells that the widest filter sees to each side
_MOST_CELLS = 8  # of the bounding grid for each patch; beyond, neighbours are looked up


class PPEG(nn.Module):
    """`x + DW7(x) + DW5(x) + DW3(x)`, depthwise convolutions with bias (Shao et al., TransMIL, 2021, figure 4).

    The three are one filter of 7 x 7: a convolution is linear in its weights.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        require_whole("dim", dim, 1)
        self.proj = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.proj1 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def start_as_neighbours(self, share: float) -> None:
        """Sets weights that add a share of the eight nearest patches, in each direction the same, and no bias."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(self.proj2.weight, share)
        with torch.no_grad():
            self.proj2.weight[:, :, 1, 1] = 0.0

    def merged(self) -> tuple[Tensor, Tensor]:
        """Returns the one filter `(C, 1, 7, 7)` and its bias `(C,)`."""
        weight, bias = self.proj.weight, self.proj.bias
        for conv, pad in ((self.proj1, 1), (self.proj2, 2)):
            weight, bias = weight + F.pad(conv.weight, [pad] * 4), bias + conv.bias  # type: ignore[operator]
        return weight, bias  # type: ignore[return-value]

    def forward(self, x: Tensor, width: int) -> Tensor:
        """Encodes patches that fill rows of a grid one after the other; cells after the last are 0.

        Args:
            x: patches `(N, C)`.
            width: cells in a row.

        Returns:
            `(N, C)`.
        """
        n = len(x)
        rows = -(-n // width)
        return x + self._convolve(F.pad(x, (0, 0, 0, rows * width - n)), rows, width)[:n]

    def at(self, x: Tensor, cells: Tensor) -> Tensor:
        """Encodes patches at cells of a lattice; cells without a patch are 0, those with several have their mean.

        Args:
            x: patches `(N, C)`.
            cells: `(N, 2)` int64, column and row of each.

        Returns:
            `(N, C)`: independent of the order of the patches, of a shift, and of where there are none.
        """
        cells = cells - cells.amin(0)
        columns, rows = (cells.amax(0) + 1).tolist()
        if rows * columns <= _MOST_CELLS * len(x):
            place = cells[:, 1] * columns + cells[:, 0]
            return x + self._convolve(_means(x, place, rows * columns), rows, columns)[place]
        stride = columns + 2 * _REACH  # so that no row reaches into the next
        keys, place = (cells[:, 1] * stride + cells[:, 0]).unique(return_inverse=True)
        return x + self._look_up(_means(x, place, len(keys)), keys, stride)[place]

    @torch.compiler.disable  # inductor cannot lay out a grid whose sides are not known (torch 2.14)
    def _convolve(self, cells: Tensor, rows: int, columns: int) -> Tensor:
        """Returns the filtered grid, `(rows columns, C)` from and to row-major cells."""
        weight, bias = self.merged()
        grid = cells.view(1, rows, columns, -1).permute(0, 3, 1, 2)
        out = F.conv2d(grid, weight, bias, padding=_REACH, groups=len(weight))
        return out.permute(0, 2, 3, 1).reshape(rows * columns, -1)

    def _look_up(self, x: Tensor, keys: Tensor, stride: int) -> Tensor:
        """Returns the filtered cells `(U, C)`, whose sorted numbers on the grid are `keys (U,)`."""
        weight, bias = self.merged()
        out = bias.to(x.dtype).expand_as(x).contiguous()
        for row in range(-_REACH, _REACH + 1):
            for column in range(-_REACH, _REACH + 1):
                wanted = keys + row * stride + column
                found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
                here = (keys[found] == wanted).nonzero().squeeze(1)
                filtered = x[found[here]] * weight[:, 0, row + _REACH, column + _REACH].to(x.dtype)
                out = out.index_add(0, here, filtered)
        return out


def _means(x: Tensor, place: Tensor, cells: int) -> Tensor:
    """Returns the mean of the patches in each cell, `(cells, C)`, 0 in those without."""
    counts = x.new_zeros(cells).index_add(0, place, x.new_ones(len(x)))
    return x.new_zeros(cells, x.shape[1]).index_add(0, place, x) / counts.clamp(min=1)[:, None]
