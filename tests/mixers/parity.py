"""Compares a mixer with the numbers of an official code: values and all gradients (golden/mixers)."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from softmaxfree.mixers import AbstractMixer
from tests import golden_files

# of any element: in float64, and in float32 over the largest element
MAX_ERROR, MAX_RELATIVE_ERROR = 1e-10, 2e-5
# of what is 0 in exact numbers
ROUNDING = 1e-13

both_precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


class _Mix(nn.Module):
    """Calls `mix`, so that `functional_call` can give it weights."""

    def __init__(self, mixer: AbstractMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, *args) -> Tensor:
        return self.mixer.mix(*args)


def load(name: str) -> tuple[dict[str, Tensor], list[int]]:
    """Returns the tensors of a mixer and the grid of its core."""
    tensors, meta = golden_files.load(f"mixers/{name}")
    return tensors, json.loads(meta["grid"])


def assert_near(ours: Tensor, golden: Tensor, name: str, rtol: float = 0.0) -> None:
    """Asserts that values computed in float64 or float32 are the golden ones, within what the dtype allows."""
    assert ours.shape == golden.shape, name
    if ours.dtype == torch.float64:
        torch.testing.assert_close(ours, golden, rtol=rtol, atol=MAX_ERROR, msg=lambda text: f"{name}: {text}")
    else:
        largest = golden.abs().max().item()
        largest = largest if largest > ROUNDING else 1.0  # 0 but for rounding: inputs are near 1
        assert (ours - golden).abs().max() <= MAX_RELATIVE_ERROR * largest, name


def check_core(
    mixer: AbstractMixer,
    tensors: dict[str, Tensor],
    grid: list[int],
    dtype: torch.dtype,
    variant: str = "",
    *,
    names: tuple[str, ...] = (),
    weights: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    mask: Tensor | None = None,
    rtol: float = 0.0,
) -> None:
    """Asserts that `mix` and its gradients are the golden ones.

    Args:
        mixer: the mixer.
        tensors: the golden ones.
        grid: of the tokens.
        dtype: to compute in.
        variant: what the names of the results start with.
        names: of golden tensors that are weights of `mix`.
        weights: makes the mixer's weights from those of `names`.
        mask: for `mix`.
        rtol: beside `MAX_ERROR` in float64.
    """
    leaves = {key: _leaf(tensors[key], dtype) for key in ("q", "k", "v", *names)}
    given = {f"mixer.{key}": value for key, value in weights({key: leaves[key] for key in names}).items()}
    arguments = (leaves["q"], leaves["k"], leaves["v"], grid, mask)
    out = torch.func.functional_call(_Mix(mixer), given, arguments)
    _compare(out, tensors["grad_out"], leaves, {key: f"{variant}grad_{key}" for key in leaves}, tensors, variant, rtol)


def check_module(
    run: Callable[[Tensor, dict[str, Tensor]], Tensor],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    part: str = "module.",
) -> None:
    """Asserts that a whole official module and its gradients are the golden ones.

    Args:
        run: from the module's input and its weights by official name to its output.
        tensors: the golden ones.
        dtype: to compute in.
        part: what their names start with.
    """
    own = golden_files.below(tensors, part)
    official = {key: _leaf(value, dtype) for key, value in golden_files.below(own, "weight.").items()}
    leaves = {key: value for key, value in official.items() if f"grad.{key}" in own}
    x = _leaf(own["x"], dtype)
    out = run(x, official)
    keys = {"x": "grad_x"} | {key: f"grad.{key}" for key in leaves}
    assert set(keys.values()) == {key for key in own if key.startswith("grad")} - {"grad_out"}
    _compare(out, own["grad_out"], {"x": x} | leaves, keys, own, "", 0.0)


def call(mixer: AbstractMixer, weights: dict[str, Tensor], x: Tensor, grid: list[int]) -> Tensor:
    """Returns what a mixer makes of tokens with weights given in place of all of its own."""
    assert weights.keys() == mixer.state_dict().keys()
    return torch.func.functional_call(mixer, weights, (x, grid))


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True).requires_grad_()


def _compare(
    out: Tensor,
    grad_out: Tensor,
    leaves: dict[str, Tensor],
    keys: dict[str, str],
    golden: dict[str, Tensor],
    variant: str,
    rtol: float,
) -> None:
    assert_near(out.detach(), golden[f"{variant}out"], f"{variant}out", rtol)
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out.to(out.dtype))
    for key, grad in zip(leaves, grads, strict=True):
        assert_near(grad, golden[keys[key]], keys[key], rtol)
