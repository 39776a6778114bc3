"""Softmax-free attention: the Gaussian kernel matrix, decomposed through landmarks (SOFT, eq. 9; SOFT++, section 3)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from softmaxfree.ops import gaussian, pinv
from softmaxfree.ops.pinv import AbstractPinvSolver, Newton, as_solver
from softmaxfree.ops.precision import compute_dtype, full_precision

__all__ = ["gaussian_attention", "nystrom_attention"]

_DEFAULT = Newton(iters=20, ridge=0.01)


def nystrom_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K E"],
    landmarks: Float[Tensor, "B H M D"],
    *,
    solver: AbstractPinvSolver | str = _DEFAULT,
    normalize: bool = False,
    mask: Bool[Tensor, "B K"] | None = None,
    landmark_mask: Bool[Tensor, "B M"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B H N E"]:
    """Softmax-free attention `K(q, l) A+ K(l, k) v`, `K(x, y) = exp(-|x - y|^2 / 2)`, `A = K(l, l)`.

    Linear in the number of tokens: the products are taken from the right, and no matrix larger than `M x M` is kept.
    Nothing is scaled here: pass `q / D^(1/4)` for the paper's kernel. Self-attention ties `k` to `q`. Computed in
    float32 (float64 for float64), also under autocast. An image's result does not depend on the others of its batch.

    Args:
        q: queries `(B, H, N, D)`, any float dtype.
        k: keys `(B, H, K, D)`.
        v: values `(B, H, K, E)`.
        landmarks: `(B, H, M, D)`.
        solver: how `A` is inverted, or its name; weights are trained for one solver.
        normalize: SOFT++: `D^(-1/2) A+ D^(-1/2)` in place of `A+`, with `D` the row sums of `A`.
        mask: `(B, K)`, True where a key is valid. Padded tokens must be finite.
        landmark_mask: `(B, M)`, True where a landmark is valid.
        causal: must be False.

    Returns:
        `(B, H, N, E)` in the dtype of `v`.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit each other.
        NotImplementedError: for `causal=True`.
    """
    if causal:
        raise NotImplementedError(
            "causal=True is not possible: every landmark sees all tokens, so K(q, l) A+ K(l, k) has no causal form"
        )
    return nystrom(q, None if k is q else k, v, landmarks, as_solver(solver).json, normalize, mask, landmark_mask)


def nystrom(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    landmarks: Tensor,
    solver: str,
    normalize: bool,
    mask: Tensor | None,
    landmark_mask: Tensor | None,
) -> Tensor:
    """`nystrom_attention` for a solver in JSON, with `k` None for keys that are the queries."""
    _check(q, q if k is None else k, v, landmarks, mask, landmark_mask)
    with full_precision(q):
        if mask is not None:
            v = v.masked_fill(~mask[:, None, :, None], 0.0)
            k = None if k is None else _padding_at_mean(k, mask)
        if landmark_mask is not None:
            landmarks = _padding_at_mean(landmarks, landmark_mask)
        z = landmark_core(landmarks, solver, normalize, landmark_mask)
        if k is None:
            return gaussian.tied_product(q, landmarks, z, v)
        return gaussian.product(q, landmarks, z @ gaussian.product(landmarks, k, v, z.dtype), v.dtype)


def _padding_at_mean(points: Tensor, mask: Tensor) -> Tensor:
    """Returns points `(B, H, M, D)` with those outside `mask (B, M)` at the mean of the others, which is the centre."""
    valid = mask[:, None, :, None]
    kept = points.detach().masked_fill(~valid, 0.0)
    mean = kept.sum(-2, keepdim=True, dtype=compute_dtype(points.dtype)) / valid.sum(-2, keepdim=True).clamp(min=1)
    return torch.where(valid, points, mean.to(points.dtype))


def landmark_core(landmarks: Tensor, solver: str, normalize: bool, landmark_mask: Tensor | None) -> Tensor:
    """Returns the matrix between `K(q, l)` and `K(l, k)`: `A+` or `D^(-1/2) A+ D^(-1/2)`, 0 for invalid landmarks."""
    gram = gaussian.gram(landmarks)
    if landmark_mask is None:
        z = pinv.inverse(gram, solver)
    else:
        invalid = ~landmark_mask[:, None, :, None]
        invalid = invalid | invalid.transpose(-1, -2)
        # rows of the identity: the others' inverse, row sums and start value are those without the invalid landmarks
        gram = torch.where(invalid, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device), gram)
        z = pinv.inverse(gram, solver).masked_fill(invalid, 0.0)
    if normalize:
        scale = gram.sum(-1, keepdim=True).rsqrt()
        z = scale * z * scale.transpose(-1, -2)
    return z


def gaussian_attention(
    q: Float[Tensor, "B H N D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K E"],
    *,
    mask: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B H N E"]:
    """Exact Gaussian attention `K(q, k) v`, quadratic in the number of tokens, for comparison (SOFT, eq. 5).

    Args:
        q: queries `(B, H, N, D)`.
        k: keys `(B, H, K, D)`.
        v: values `(B, H, K, E)`.
        mask: `(B, K)`, True where a key is valid.

    Returns:
        `(B, H, N, E)` in the dtype of `v`.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit each other.
    """
    _check_mask("mask", mask, q, k.shape[-2])
    if mask is not None:
        v, k = v.masked_fill(~mask[:, None, :, None], 0.0), _padding_at_mean(k, mask)
    return gaussian.gaussian_product(q, k, v)


def _check(
    q: Tensor, k: Tensor, v: Tensor, landmarks: Tensor, mask: Tensor | None, landmark_mask: Tensor | None
) -> None:
    named = {"q": q, "k": k, "v": v, "landmarks": landmarks}
    for name, x in named.items():
        if x.ndim != 4:
            raise ValueError(f"{name} must be (B, H, tokens, width), got {tuple(x.shape)}")
        if x.shape[:2] != q.shape[:2] or (name != "v" and x.shape[-1] != q.shape[-1]):
            raise ValueError(f"{name} {tuple(x.shape)} does not fit q {tuple(q.shape)}: batch, heads, width must agree")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, but q is {q.dtype} on {q.device}: they must agree")
    if v.shape[-2] != k.shape[-2]:
        raise ValueError(f"v must have one row for each of the {k.shape[-2]} keys, got {v.shape[-2]}")
    if landmarks.shape[-2] == 0:
        raise ValueError("landmarks must hold at least one landmark, got 0")
    if not torch.compiler.is_exporting() and landmarks.shape[-2] > max(q.shape[-2], k.shape[-2]):
        raise ValueError(
            f"landmarks must not outnumber the {max(q.shape[-2], k.shape[-2])} tokens, got {landmarks.shape[-2]}"
        )
    if compute_dtype(q.dtype) not in (q.dtype, torch.float32):
        raise ValueError(f"q must be a float tensor, got {q.dtype}")
    _check_mask("mask", mask, q, k.shape[-2])
    _check_mask("landmark_mask", landmark_mask, q, landmarks.shape[-2])


def _check_mask(name: str, mask: Tensor | None, q: Tensor, length: int) -> None:
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (q.shape[0], length)):
        raise ValueError(f"{name} must be bool (B, {length}) with B={q.shape[0]}, got {mask.dtype} {tuple(mask.shape)}")
