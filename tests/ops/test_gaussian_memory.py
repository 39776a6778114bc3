"""Tiles keep their promise: no N x M array, memory below twice that of inputs, output and gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from softmaxfree.bench.memory import peak_bytes
from softmaxfree.ops import nystrom_attention
from softmaxfree.ops.gaussian import blocked

CPU = torch.device("cpu")


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for z in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(z, torch.Tensor):
                self.elements = max(self.elements, z.numel())
        return out


class _Exponentials(TorchDispatchMode):
    """Counts the numbers whose exponential was taken."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.exp2_.default:
            self.elements += out.numel()
        return out


@pytest.mark.parametrize(("n", "m"), [(50_176, 49), (49, 50_176)])
def test_no_kernel_matrix(n: int, m: int):
    x, y, b, grad = (torch.randn(1, 2, rows, 32) for rows in (n, m, m, n))
    with _Largest() as seen:
        blocked.forward(x, y, b, torch.float32)
        blocked.backward(x, y, b, grad)
    assert seen.elements == max(x.numel(), y.numel())


def test_no_kernel_matrix_of_self_attention():
    x, y, z, v, grad = _tied_inputs(1, 50_176)
    with _Largest() as seen:
        _, kv = blocked.tied_forward(x, y, z, v)
        blocked.tied_backward(x, y, z, v, kv, grad)
    assert seen.elements == x.numel()


def test_the_kernel_of_an_image_that_is_one_tile_is_computed_once_a_pass():
    x, y, z, v, grad = _tied_inputs(3, 3136)
    entries = 3 * 2 * 3136 * 49
    with _Exponentials() as seen:
        _, kv = blocked.tied_forward(x, y, z, v)
        assert seen.elements == entries
        blocked.tied_backward(x, y, z, v, kv, grad)
        assert seen.elements == 2 * entries


def _tied_inputs(batch: int, tokens: int) -> list[torch.Tensor]:
    x, y, v, grad = (torch.randn(batch, 2, rows, 32) for rows in (tokens, 49, tokens, tokens))
    return [x, y, torch.randn(batch, 2, 49, 49), v, grad]


@pytest.mark.parametrize("tokens", [50_176, pytest.param(802_816, marks=pytest.mark.slow)])
def test_attention_memory(tokens: int):
    q, v, landmarks = (torch.randn(1, 2, rows, 32, requires_grad=True) for rows in (tokens, tokens, 49))
    grad = torch.randn(1, 2, tokens, 32)

    def step():
        return torch.autograd.grad(nystrom_attention(q, q, v, landmarks), (q, v, landmarks), grad)

    held = 2 * (q.nbytes + v.nbytes + landmarks.nbytes + grad.nbytes)  # each with its gradient
    inputs = q.nbytes + v.nbytes + landmarks.nbytes + grad.nbytes
    assert inputs + peak_bytes(step, CPU) < 2 * held


def test_peak_counts_what_lives_at_once():
    def work():
        a = torch.ones(1000, dtype=torch.uint8)
        del a
        b = torch.ones(3000, dtype=torch.uint8)
        return b, torch.ones(500, dtype=torch.uint8)

    # an allocator may round each up to 64 bytes; `ones` needs nothing else
    assert 3500 <= peak_bytes(work, CPU) <= 3500 + 2 * 64
