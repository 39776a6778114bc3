"""What every network of bags takes: features, which of them are valid, and where the patches lie."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from softmaxfree.arguments import require
from softmaxfree.errors import InputError

__all__ = ["Bags", "as_bags", "as_mask"]


class Bags(NamedTuple):
    """A batch of bags: `x (B, N, D)`, 0 in the padding; `mask (B, N)` bool, None without padding; `coords (B, N, 2)`.

    `N` is the length of the longest bag. `coords` are pixels `(x, y)`, float64, None where they are not known;
    `lengths` the number of patches of each bag, and `width` the length that the batch was given with.
    """

    x: Tensor
    mask: Tensor | None
    coords: Tensor | None
    lengths: list[int]
    width: int

    def each(self) -> list[Tensor]:
        """Returns the patches `(n, D)` of each bag alone."""
        if len(self.x) == 1:
            return [self.x[0]]
        # a copy, as rounding depends on where in memory a matrix begins
        return [own[:n].clone() for own, n in zip(self.x, self.lengths, strict=True)]

    def as_given(self, tokens: Tensor) -> Tensor:
        """Returns tokens `(B, N, C)` at the length that the batch was given with, 0 in the padding."""
        if self.mask is not None:
            tokens = tokens.masked_fill(~self.mask[..., None], 0.0)
        return F.pad(tokens, (0, 0, 0, self.width - tokens.shape[1]))


def as_bags(x: Tensor, mask: Tensor | None, coords: Tensor | None, in_dim: int) -> Bags:
    """Checks what a network is given.

    Args:
        x: features `(B, N, in_dim)` or, of one bag, `(N, in_dim)`, any float dtype; the padding may hold anything.
        mask: `(B, N)` or `(N,)` bool or uint8, True for a patch; padding is on the right.
        coords: `(B, N, 2)` or `(N, 2)`, any real dtype.
        in_dim: the width that the network has.

    Returns:
        The bags, `B` = 1 for one bag.

    Raises:
        InputError: shapes or dtypes do not fit, a bag is empty, or padding is not on the right.
    """
    require(isinstance(x, Tensor) and x.is_floating_point(), "x", getattr(x, "dtype", x), "a tensor of floats")
    for name, given in {"mask": mask, "coords": coords}.items():
        require(given is None or isinstance(given, Tensor), name, type(given).__name__, "a tensor")
    if x.ndim not in (2, 3) or x.shape[-1] != in_dim:
        raise InputError(f"x must be features (B, N, {in_dim}) or (N, {in_dim}), got {tuple(x.shape)}")
    if x.ndim == 2:
        x = x[None]
    if len(x) == 1:
        mask, coords = _batched(mask, 1), _batched(coords, 2)
    lengths = [x.shape[1]] * len(x)
    if mask is not None:
        mask, lengths = _checked_mask(mask, x)
    if 0 in lengths or not lengths:
        where = f"bag {lengths.index(0)} of the batch" if lengths else "the batch"
        raise InputError(f"x must hold at least one patch in each bag, but {where} is empty")
    if coords is not None:
        coords = _checked_coords(coords, x, mask)
    width, longest = x.shape[1], max(lengths)
    x, coords = x[:, :longest], None if coords is None else coords[:, :longest]
    if mask is None or min(lengths) == longest:
        return Bags(x, None, coords, lengths, width)
    mask = mask[:, :longest]
    return Bags(x.masked_fill(~mask[..., None], 0.0), mask, coords, lengths, width)


def _batched(given: Tensor | None, ndim: int) -> Tensor | None:
    return given[None] if given is not None and given.ndim == ndim else given


def as_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Checks which tokens are said to be valid.

    Args:
        mask: bool or uint8, True for a token.
        x: tokens `(B, N, C)`.

    Returns:
        `(B, N)` bool, where `x` is.

    Raises:
        InputError: for another shape or dtype.
    """
    if mask.dtype not in (torch.bool, torch.uint8) or mask.shape != x.shape[:2]:
        raise InputError(f"mask must be bool or uint8 {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    return mask.to(x.device).bool()


def _checked_mask(mask: Tensor, x: Tensor) -> tuple[Tensor, list[int]]:
    mask = as_mask(mask, x)
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise InputError("mask must be True for the first patches of each bag: padding is on the right")
    return mask, mask.sum(1).tolist()


def _checked_coords(coords: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    shape = (*x.shape[:2], 2)
    if coords.shape != shape or coords.is_complex() or coords.dtype == torch.bool:
        raise InputError(
            f"coords must be numbers {shape}, (x, y) of each patch, got {coords.dtype} {tuple(coords.shape)}"
        )
    coords = coords.to(x.device, torch.float64)
    if mask is not None:
        coords = coords.masked_fill(~mask[..., None], 0.0)
    require(bool(coords.isfinite().all()), "coords", "NaN or infinity", "finite numbers")
    return coords
