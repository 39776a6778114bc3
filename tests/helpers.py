"""Every tolerance and every odd size of the test suite."""

from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

# token counts around 7 x 7, 14 x 14 and 56 x 56, with a class token, and one that no power of two divides
TOKEN_COUNTS = (49, 50, 63, 196, 197, 3136)
# landmark counts: one, odd, 7 x 7
LANDMARK_COUNTS = (1, 9, 49)
# of any element against the released code's, over the largest element
MAX_RELATIVE_ERROR = 2e-4
# of an image's logits alone against the same image in a batch
MAX_BATCH_EFFECT = 1e-5
# of a masked image's maps, logits and gradients against those of the image alone
MAX_PADDING_EFFECT = 1e-4


def assert_no_worse_than(
    out: Tensor, naive_same_dtype: Tensor, naive_float64: Tensor, factor: float = 2, name: str = "out"
) -> None:
    """Asserts that `out` is at most `factor` times as wrong as the definition computed in the same dtype.

    Errors are Euclidean norms against the definition in float64, so one wrong element among exact ones fails.
    Where the definition happens to be exact, one rounding of the result is allowed.

    Args:
        out: the result to judge.
        naive_same_dtype: the definition, on the same inputs, in their dtype.
        naive_float64: the definition, on the same inputs, in float64.
        factor: how much worse `out` may be.
        name: what the failure message calls `out`.
    """
    assert out.shape == naive_same_dtype.shape == naive_float64.shape, f"{name}: shapes differ"
    assert out.dtype == naive_same_dtype.dtype, f"{name}: {out.dtype}, expected {naive_same_dtype.dtype}"
    assert torch.isfinite(out).all(), f"{name} is not finite"
    error = _distance(out, naive_float64)
    rounding = torch.finfo(out.dtype).eps / 2 * naive_float64.norm().item()
    allowed = max(factor * _distance(naive_same_dtype, naive_float64), rounding)
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e} of {naive_float64.norm():.3e}"


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).norm().item()


def slow_but(quick: Collection[Any], cases: Sequence[Any]) -> list[Any]:
    """Returns the cases of a parametrised test, of which all but a few are among the slow ones."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [() if case in quick else pytest.mark.slow for case in cases]
    return [pytest.param(*own, marks=mark) for own, mark in zip(values, marks, strict=True)]
