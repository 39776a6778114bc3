"""Cells, steps and the order along the Hilbert curve."""

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mil.curve import curve_order, hilbert, infer_step, lattice


def grid(columns: int, rows: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)


@pytest.mark.parametrize("side", [2, 4, 8, 32])
def test_the_curve_visits_neighbours(side):
    cells = grid(side, side)
    places = hilbert(cells)
    assert places.sort().values.tolist() == list(range(side * side))
    assert (cells[places.argsort()].diff(dim=0).abs().sum(1) == 1).all()


def test_the_order_does_not_depend_on_the_largest_cell():
    cells = grid(5, 5)
    larger = torch.cat((cells, torch.tensor([[4000, 9]])))
    assert torch.equal(hilbert(larger)[:25].argsort(), hilbert(cells).argsort())


def test_ties_are_sorted_by_row_then_column_then_content():
    coords = torch.tensor([[3.0, 1.0], [2.0, 1.0], [9.0, 0.0], [2.0, 1.0]])
    tie = torch.tensor([0.0, 5.0, 0.0, 4.0])
    order = curve_order(torch.zeros(4, 2, dtype=torch.long), coords, tie)
    assert order.tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize("step", [1.0, 224.0, 512.0, 1024.0, 447.6])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.05])
def test_the_step_of_a_lattice(step, share):
    cells = grid(60, 40)
    cells = cells[torch.rand(len(cells)) < share]
    found = lattice((cells * step).round().double() + 1000)
    assert found.step == pytest.approx(step, rel=1e-3)
    assert torch.equal(found.cells, cells - cells.amin(0))
    assert found.collisions == 0


def test_contours_with_origins_of_their_own():
    first, second = grid(12, 9) * 512.0, grid(7, 20) * 512.0 + torch.tensor([8000.0, 137.0])
    found = lattice(torch.cat((first, second)).double())
    assert found.step == 512
    assert torch.equal(found.cells[:108], grid(12, 9))
    assert torch.equal(found.cells[108:] - found.cells[108], grid(7, 20))


@pytest.mark.parametrize("step", [512.0, 447.6])
def test_a_contour_half_a_step_off_keeps_its_cells(step):
    first, second = grid(12, 9) * step, grid(7, 20) * step + torch.tensor([20.5, 7.5]) * step
    found = lattice(torch.cat((first, second)).double() + 0.1)
    assert found.collisions == 0
    assert torch.equal(found.cells[108:] - found.cells[108], grid(7, 20))


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("noise", [0, 1e-9, 1e-3])
def test_places_that_were_turned_or_rounded(turn, noise):
    angle, cells = torch.deg2rad(torch.tensor(float(turn), dtype=torch.float64)), grid(12, 9)
    matrix = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).view(2, 2)
    coords = 512 * cells.double() @ matrix.mT + 7e4 + noise * torch.randn(108, 2, dtype=torch.float64)
    found = lattice(coords)
    expected = (cells.double() @ matrix.mT).round().long()
    assert found.step == pytest.approx(512, rel=1e-4)
    assert torch.equal(found.cells, expected - expected.amin(0))


def test_patches_of_40x_at_20x_are_neighbours():
    coords = grid(20, 20) * 448.0  # a patch of 224 pixels at 20x is 448 at level 0
    assert lattice(coords).cells.amax(0).tolist() == [19, 19]
    assert lattice(coords, 224.0).cells.amax(0).tolist() == [38, 38]  # the step of the target level spreads them
    found = lattice(coords, 896.0)
    assert found.cells.amax(0).tolist() == [10, 10]
    assert found.collisions == 400 - len(found.cells.unique(dim=0)) > 0


def test_places_without_a_common_row_or_column():
    coords = torch.tensor([[0.0, 0.0], [3.0, 5.0], [6.0, 10.0]], dtype=torch.float64)
    assert infer_step(coords) == 3
    assert infer_step(coords[:1]) == 1


def test_one_cell_for_all_is_refused():
    with pytest.raises(InputError, match="all 3 patches of slide s7 fall into one cell at step 4096"):
        lattice(torch.tensor([[0.0, 0.0], [512.0, 0.0], [0.0, 512.0]]).double(), 4096, "slide s7")
    with pytest.raises(InputError, match=r"fall into one cell at step 1 \(inferred\)"):
        lattice(torch.zeros(5, 2, dtype=torch.float64))
    with pytest.raises(InputError, match="the patches of the bag lie further apart than 2147483648 cells at step 2 "):
        lattice(torch.tensor([[0.0, 0.0], [2.0, 1e20]]).double(), 2)
    with pytest.raises(InputError, match=r"step must be pixels between neighbours, above 0, got 0\.0"):
        lattice(torch.rand(5, 2).double(), 0)
