"""What is measured of a mixer without training: cost over tokens, size, error against its exact form, padding, half."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from softmaxfree.bench.macs import macs
from softmaxfree.bench.memory import peak_bytes
from softmaxfree.compare.studies import Variant
from softmaxfree.errors import InputError
from softmaxfree.mixers import AbstractMixer, SoftmaxFreeAttention, create_mixer
from softmaxfree.mixers.mixer import own_arguments
from softmaxfree.ops import gaussian_gram, pinv
from softmaxfree.ops.pinv import residual
from softmaxfree.timing import Timer

__all__ = ["NETWORK", "PASSES", "check_photograph", "cost", "facts", "grid_of"]

PASSES = ("forward", "forward+backward")
"""What time and memory are measured of."""

NETWORK = "soft_tiny"
"""Its parameters and multiply-adds are told."""
_HEADS, _WIDTH = 2, 32  # as the first stage of soft_tiny
_GRID, _PATCH = (24, 32), 16  # of tokens whose errors are measured, and pixels a side of each
_CALLS, _SECONDS = 5, 1.0  # of a pass: at least, and about
_LENGTHY = 4  # times a grid is as long as wide that is no image's any more
_LONGEST = 30.0  # seconds that a pass may be expected to take
_MOST_BYTES = 6 << 30  # of an N x N matrix in float32, beyond which a quadratic mixer is not tried


def grid_of(tokens: int) -> tuple[int, int]:
    """Returns the most square grid of so many tokens, or of the nearest number that has one.

    Args:
        tokens: how many, 1 or more.

    Returns:
        Rows and columns, which differ by less than 4 times.
    """
    near = (number for away in itertools.count() for number in (tokens - away, tokens + away) if number > 0)
    for number in near:
        side = next(side for side in range(math.isqrt(number), 0, -1) if number % side == 0)
        if number < _LENGTHY * side**2:
            return side, number // side
    raise AssertionError("squares have a grid")


def check_photograph(image: np.ndarray) -> None:
    """Refuses a photograph of which `facts` cannot be measured.

    Args:
        image: `(height, width, 3)` uint8.

    Raises:
        InputError: it is too small.
    """
    height, width = (_PATCH * side for side in _GRID)
    if image.shape[0] < height or image.shape[1] < width:
        raise InputError(
            f"image must be at least {height} pixels high and {width} wide, got {image.shape[0]} x {image.shape[1]}"
        )


def cost(variant: Variant, grid: Sequence[int]) -> list[dict[str, Any]]:
    """Returns time and memory of `mix` on one image, forward, and forward and backward.

    Args:
        variant: what to measure.
        grid: rows and columns of the tokens.

    Returns:
        A row for each pass: `what`, `milliseconds` (median of `runs`, with `low` and `high`, between which their middle
        half lies), `peak_mib`, `grid`.

    Raises:
        InputError: the mixer cannot take such a grid.
        RuntimeError: the memory does not suffice.
    """
    grid, tokens = list(grid), math.prod(grid)
    mixer = _mixer(variant)
    x = torch.randn(1, tokens, mixer.dim, generator=torch.Generator().manual_seed(0))
    mixer.check(x, grid, None)
    if not mixer.linear and 4 * _HEADS * tokens**2 > _MOST_BYTES:
        raise InputError(f"{variant.mixer} is quadratic and may take more than {_MOST_BYTES >> 30} GiB")
    with torch.no_grad():
        q, k, v = mixer.project(x)
    tied = k is q
    leaves = [tensor.detach().requires_grad_() for tensor in ((q, v) if tied else (q, k, v))]

    def infer() -> object:
        with torch.inference_mode():
            return _mixed(mixer, q, k, v, grid)

    def learn() -> object:
        keys = leaves[0 if tied else 1]
        out = mixer.mix(leaves[0], keys, leaves[-1], grid)
        return torch.autograd.grad(out.sum(), leaves, allow_unused=True)

    return [
        {"grid": f"{grid[0]}x{grid[1]}", "what": what, **_timed(step)}
        for what, step in zip(PASSES, (infer, learn), strict=True)
    ]


def _timed(step: Callable[[], object]) -> dict[str, Any]:
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    first = timer.timeit(1).mean
    calls = min(max(_CALLS, round(_SECONDS / first)), 200) if first < _LONGEST / _CALLS else 1
    seconds = [timer.timeit(1).mean for _ in range(calls)]
    peak = peak_bytes(step, torch.device("cpu")) / 2**20
    low, median, high = (round(1e3 * float(value), 4) for value in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {"milliseconds": median, "low": low, "high": high, "peak_mib": round(peak, 2), "runs": calls}


def facts(variant: Variant, image: np.ndarray) -> dict[str, Any]:
    """Returns what one image tells of a mixer.

    Args:
        variant: what to measure.
        image: a photograph `(height, width, 3)` uint8, whose patches are the tokens.

    Returns:
        `parameters` and `gmacs` of `soft_tiny` with this mixer in all stages at its own size. Of a mixer with
        random weights, and with `landmarks` by the mean where the variant does not say how: `approximates`, and
        `error_to_exact`, the relative distance of the result to that of what it approximates; `padding_error`, the
        largest difference between a padded image and the image alone over the largest value, or "refused";
        `bfloat16_error`, the relative distance under autocast to float32; `residual`, `|A Y A - A| / |A|` of the
        inverse `Y` of the landmarks' matrix `A`, the mean over the heads (SOFT, section 4.4).
    """
    tokens = _tokens(image)
    mixer = _mixer(variant)
    if "landmark_sampling" in own_arguments(type(mixer)):  # a random convolution finds none: the result would be near 0
        mixer = _mixer(variant, landmark_sampling="mean")
    mixer.eval()
    with torch.inference_mode():
        _mixed(mixer, *mixer.project(tokens), list(_GRID))  # before a network fails of what it returns
    network: Any = timm.create_model(NETWORK, mixer=variant.mixer, mixer_args=dict(variant.arguments)).to("meta")
    size = network.pretrained_cfg["input_size"][-2:]
    row: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gmacs": round(macs(network, size)["executed"] / 1e9, 3),
        "linear": mixer.linear,
        "landmarks": getattr(mixer, "landmark_sampling", ""),
    }
    with torch.inference_mode():
        exact = mixer(tokens, list(_GRID))
        with torch.autocast("cpu", torch.bfloat16):
            narrow = mixer(tokens, list(_GRID)).float()
        row |= _to_exact(mixer, tokens) | {"padding_error": _padding_error(mixer, tokens)}
        row |= {"residual": _residual(mixer, tokens) if isinstance(mixer, SoftmaxFreeAttention) else ""}
    return row | {"bfloat16_error": _digits((narrow - exact).norm() / exact.norm())}


def _mixed(mixer: AbstractMixer, q: Tensor, k: Tensor, v: Tensor, grid: list[int]) -> Tensor:
    out = mixer.mix(q, k, v, grid)
    if out.shape != v.shape:
        raise InputError(
            f"mix of {mixer.name} must return (B, H, N, E), {tuple(v.shape)}, and returned {tuple(out.shape)}"
        )
    return out


def _to_exact(mixer: AbstractMixer, tokens: Tensor) -> dict[str, Any]:
    if not mixer.approximates:
        return {"approximates": "", "error_to_exact": ""}
    other = create_mixer(mixer.approximates, dim=mixer.dim, num_heads=mixer.num_heads).eval()
    q, k, v = mixer.project(tokens)
    exact = other.mix(q, k, v, list(_GRID))
    error = (mixer.mix(q, k, v, list(_GRID)) - exact).norm() / exact.norm()
    return {"approximates": mixer.approximates, "error_to_exact": _digits(error)}


def _residual(mixer: SoftmaxFreeAttention, tokens: Tensor) -> float:
    gram = gaussian_gram(mixer.landmarks(mixer.project(tokens)[0], list(_GRID)))
    return _digits(residual(gram, pinv(gram, mixer.solver)).mean())


def _padding_error(mixer: AbstractMixer, tokens: Tensor) -> float | str:
    if not mixer.masks:
        return "refused"
    height, width = _GRID[0] * 2 // 3, _GRID[1] * 3 // 4
    mask = torch.zeros(1, *_GRID, dtype=torch.bool)
    mask[:, :height, :width] = True
    own = tokens.view(1, *_GRID, -1)[:, :height, :width].flatten(1, 2)
    alone = mixer(own, [height, width])
    padded = mixer(tokens, list(_GRID), mask).view(1, *_GRID, -1)[:, :height, :width].flatten(1, 2)
    return _digits((padded - alone).abs().max() / alone.abs().max())


def _mixer(variant: Variant, **otherwise: Any) -> AbstractMixer:
    own = {**otherwise, **variant.arguments}
    if variant.mixer in ("soft", "linformer", "nystrom") and "ratio" not in own:
        own["ratio"] = 8  # as the first stage of soft_tiny
    if variant.mixer == "soft":
        own.setdefault("value_kernel", 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixer = create_mixer(variant.mixer, dim=_HEADS * _WIDTH, num_heads=_HEADS, **own)
    mixer.config()  # which refuses one that has not kept its arguments
    return mixer


def _tokens(image: np.ndarray) -> Tensor:
    """Returns patches of 16 x 16 pixels of a photograph, projected at random, normalised: `(1, N, C)`."""
    height, width = (_PATCH * side for side in _GRID)
    x = torch.tensor(image[:height, :width].astype(np.float32) / 255 - 0.5).permute(2, 0, 1)[None]
    patches = torch.nn.functional.unfold(x, _PATCH, stride=_PATCH).mT
    basis = torch.randn(patches.shape[-1], _HEADS * _WIDTH, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.layer_norm(patches @ basis, [_HEADS * _WIDTH])


def _digits(value: Tensor) -> float:
    return float(f"{float(value):.3g}")
