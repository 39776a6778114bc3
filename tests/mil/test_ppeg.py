"""The position encoding on a square and on coordinates."""

import pytest
import torch

from softmaxfree.mil import ppeg
from softmaxfree.mil.ppeg import PPEG
from tests.golden_files import below
from tests.mil.golden import MAX_ERROR, distance, tensors, weights


@pytest.fixture
def layer() -> PPEG:
    own = PPEG(16)
    own.load_state_dict(below(weights("transmil"), "pos_layer."))
    return own.double()


# a dense grid, and neighbours that are looked up
both_ways = pytest.mark.parametrize("most_cells", [10**6, 0], ids=["grid", "looked up"])


@both_ways
def test_golden_cells(layer, most_cells, monkeypatch):
    monkeypatch.setattr(ppeg, "_MOST_CELLS", most_cells)
    golden = tensors("ppeg_coordinates")
    cells = golden["yx"].flip(1)
    assert distance(layer.at(golden["x"], cells), golden["out"]) < MAX_ERROR[torch.float64]
    assert distance(layer.at(golden["x"], cells.flip(1)), golden["out"]) > 0.1  # x and y swapped


@both_ways
def test_a_full_square_is_the_official_one(layer, most_cells, monkeypatch):
    monkeypatch.setattr(ppeg, "_MOST_CELLS", most_cells)
    x = torch.randn(64, 16, dtype=torch.float64)
    grid = x.mT.view(1, 16, 8, 8)
    expected = (grid + layer.proj(grid) + layer.proj1(grid) + layer.proj2(grid)).view(16, 64).mT
    torch.testing.assert_close(layer(x, 8), expected, rtol=0, atol=1e-14)
    cells = torch.cartesian_prod(torch.arange(8), torch.arange(8)).flip(1)
    torch.testing.assert_close(layer.at(x, cells), expected, rtol=0, atol=1e-14)


@both_ways
def test_shift_order_and_empty_rows_change_nothing(layer, most_cells, monkeypatch):
    monkeypatch.setattr(ppeg, "_MOST_CELLS", most_cells)
    x, cells = torch.randn(30, 16, dtype=torch.float64), torch.randperm(100)[:30]
    cells = torch.stack((cells % 10, cells // 10), 1)
    out, order = layer.at(x, cells), torch.randperm(30)
    torch.testing.assert_close(layer.at(x[order], cells[order]), out[order], rtol=0, atol=1e-14)
    torch.testing.assert_close(layer.at(x, cells + torch.tensor([70, -5])), out, rtol=0, atol=1e-14)
    far = torch.cat((cells, torch.tensor([[300, 200]])))  # with nothing between
    torch.testing.assert_close(layer.at(torch.cat((x, x[:1])), far)[:30], out, rtol=0, atol=1e-14)


@both_ways
def test_patches_of_one_cell_are_averaged(layer, most_cells, monkeypatch):
    monkeypatch.setattr(ppeg, "_MOST_CELLS", most_cells)
    x, cells = torch.randn(5, 16, dtype=torch.float64), torch.tensor([[0, 0], [1, 0], [1, 0], [2, 4], [3, 0]])
    mean = torch.stack((x[0], (x[1] + x[2]) / 2, x[3], x[4]))
    encoded = layer.at(mean, cells[[0, 1, 3, 4]]) - mean
    expected = x + encoded[[0, 1, 1, 2, 3]]
    torch.testing.assert_close(layer.at(x, cells), expected, rtol=0, atol=1e-14)


def test_both_ways_have_the_same_gradients(layer, monkeypatch):
    golden, found = tensors("ppeg_coordinates"), []
    for most_cells in (10**6, 0):
        monkeypatch.setattr(ppeg, "_MOST_CELLS", most_cells)
        x = golden["x"].clone().requires_grad_()
        found.append(torch.autograd.grad(layer.at(x, golden["yx"]).square().sum(), [x, *layer.parameters()]))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_compilers_leave_the_convolution_alone(layer):
    seen = []

    def backend(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes)
        return graph

    x = torch.randn(20, 16, dtype=torch.float64)
    with torch.no_grad():  # dynamo asks for gradients between its graphs, and torch warns of that
        torch.testing.assert_close(torch.compile(layer, backend=backend)(x, 5), layer(x, 5), rtol=0, atol=0)
    assert seen
    assert torch.conv2d not in seen
