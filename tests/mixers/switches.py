"""What the switches of a mixer must not break, and weights of official modules under our names."""

from collections.abc import Callable

import torch
from torch import Tensor

from softmaxfree.mixers import AbstractMixer, create_mixer
from tests.mixers.parity import call

DIM, HEADS, GRID = 24, 3, [4, 5]  # of the official tensors

Weights = dict[str, Tensor]


def make(name: str, dtype: torch.dtype = torch.float64, **own) -> AbstractMixer:
    """Returns a mixer of the size of the golden ones."""
    return create_mixer(name, dim=DIM, num_heads=HEADS, dtype=dtype, **own).eval()


def random_qkv(batch: int = 2, cells: int = 20, scale: float = 1.0) -> list[Tensor]:
    """Returns queries, keys and values of normal numbers in float64."""
    return [scale * torch.randn(batch, HEADS, cells, DIM // HEADS, dtype=torch.float64) for _ in range(3)]


def from_fused(weights: Weights, fused: str, gate: str, last: str) -> Weights:
    """Returns official weights with one projection to queries, keys, values and gate under our names.

    Args:
        weights: of the official module, which has `lepe` too.
        fused: official name of the projection.
        gate: our name of the gate's linear layer.
        last: official name of the output's projection.
    """
    renamed = {}
    for kind in ("weight", "bias"):
        # convolutions of one pixel become matrices
        first, final = (w.flatten(1) if w.ndim > 1 else w for w in (weights[f"{key}.{kind}"] for key in (fused, last)))
        renamed[f"qkv.{kind}"], renamed[f"{gate}.{kind}"] = first.split([3 * DIM, DIM])
        renamed[f"value_conv.{kind}"] = weights[f"lepe.{kind}"]
        renamed[f"proj.{kind}"] = final
    return renamed


def assert_switches_keep_the_contract(name: str, sequences: bool = True, **own) -> None:
    """Asserts for a mixer with switches on what the contract tests ask of the plain one: padding, prefix, export."""
    mixer = make(name, **own)
    for parameter in mixer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    _assert_padding_leaves_no_trace(mixer, [6, 7], [[4, 5], [6, 3]])
    if sequences:
        _assert_padding_leaves_no_trace(mixer, [9], [[4], [7]])
    x = torch.randn(2, 21, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, 0] += 1
    assert (mixer(changed, GRID)[:, 1:] - mixer(x, GRID)[:, 1:]).abs().max() > 1e-9
    again = make(name, **{key: value for key, value in mixer.config().items() if key != "name"})
    again.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(again(x, GRID), mixer(x, GRID), rtol=0, atol=0)
    _assert_exports(mixer)


def _assert_padding_leaves_no_trace(mixer: AbstractMixer, padded: list[int], own: list[list[int]]) -> None:
    mask = torch.zeros(len(own), *padded, dtype=torch.bool)
    for i, sizes in enumerate(own):
        mask[(i, *map(slice, sizes))] = True
    cells = torch.randn(*mask.shape, DIM, dtype=torch.float64)
    cells[~mask] *= 100
    prefix = torch.randn(len(own), 1, DIM, dtype=torch.float64)
    x = torch.cat([prefix, cells.flatten(1, -2)], 1).requires_grad_()
    out = mixer(x, padded, mask)
    assert out.isfinite().all()
    for i, sizes in enumerate(own):
        inside = torch.cat([torch.ones(1, dtype=torch.bool), mask[i].flatten()])
        alone = mixer(x[i : i + 1, inside], sizes)[0]
        torch.testing.assert_close(out[i, inside], alone, rtol=1e-9, atol=1e-10)
    out[:, 1:][mask.flatten(1)].square().sum().backward()
    assert x.grad[:, 1:][~mask.flatten(1)].abs().max() == 0


class _OnMap(torch.nn.Module):
    def __init__(self, mixer: AbstractMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.flatten(2).transpose(1, 2), [x.shape[2], x.shape[3]])


def _assert_exports(mixer: AbstractMixer) -> None:
    model, dim = _OnMap(mixer).eval(), torch.export.Dim
    shapes = {"x": {0: dim("batch"), 2: dim("height", min=2, max=64), 3: dim("width", min=2, max=64)}}
    x = torch.randn(2, DIM, 6, 5, dtype=torch.float64)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    for size in ((6, 5), (5, 8)):
        x = torch.randn(3, DIM, *size, dtype=torch.float64)
        torch.testing.assert_close(program(x), model(x), rtol=1e-7, atol=1e-9)


def official_module(mixer: AbstractMixer, renamed: Callable[[Weights], Weights]) -> Callable[[Tensor, Weights], Tensor]:
    """Returns a mixer as a function of an official module's input, a map or tokens, and weights.

    Args:
        mixer: with the switches on that make it the official module.
        renamed: official weights to ours: names, order, shapes.
    """

    def run(x: Tensor, weights: Weights) -> Tensor:
        if x.ndim == 3:
            return call(mixer, renamed(weights), x, GRID)
        out = call(mixer, renamed(weights), x.flatten(2).transpose(1, 2), GRID)
        return out.transpose(1, 2).unflatten(2, GRID)

    return run
