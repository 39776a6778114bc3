"""Landmarks and their inverses, against matrices that are made whole."""

import pytest
import timm
import torch

from softmaxfree.errors import InputError
from softmaxfree.explain import inverses, landmark_importance
from softmaxfree.explain.capture import Captured
from softmaxfree.explain.landmarks import LandmarkImportance, factors
from tests.explain.test_rows import GRID, TINY, captured_of, explicit, make

MIXERS = [
    ("soft", {"landmark_sampling": "mean", "landmark_grid": (3, 3)}),
    ("soft", {"landmark_sampling": "random", "normalize": True}),
    ("soft", {"ratio": 2}),
    ("nystrom", {"landmark_grid": (2, 3)}),
]
every_mixer = pytest.mark.parametrize(("name", "own"), MIXERS, ids=str)


def mask_of(masked):
    mask = torch.zeros(1, *GRID, dtype=torch.bool)
    mask[:, :4, :5] = True
    return mask if masked else None


@every_mixer
@pytest.mark.parametrize("masked", [False, True])
def test_the_factors_make_the_matrix(name, own, masked):
    mixer = make(name, **own)
    captured = captured_of(mixer, 2, mask_of(masked))
    whole = slice(0, captured.q.shape[2])
    with torch.no_grad():
        found = factors(mixer, captured)
        product = found.of_queries(whole) @ found.of_keys(whole).mT
    valid = torch.ones(whole.stop, dtype=torch.bool)
    if masked:
        valid[2:] = captured.mask.flatten()
    matrix = explicit(mixer, captured)
    torch.testing.assert_close(product[:, valid][:, :, valid], matrix[:, valid][:, :, valid], rtol=0, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("near", [0, 1])
def test_the_factors_of_softn_make_the_matrix_but_for_exact_keys(masked, near):
    mixer = make("softn", exact_keys=3, near=near, landmark_grid=(2, 3), maps=True)
    mixer.q_map.data.add_(0.1 * torch.randn(mixer.q_map.shape, dtype=torch.float64))
    captured = captured_of(mixer, 2, mask_of(masked))
    whole = slice(0, captured.q.shape[2])
    with torch.no_grad():
        found = factors(mixer, captured)
        product = found.of_queries(whole) @ found.of_keys(whole).mT
    assert found.gram.shape == (3, found.landmarks, found.landmarks)
    y, x = (place.flatten() for place in torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij"))
    reach = 3 * near + 1  # a window has 2 near + 2 tokens, and near around it
    far = torch.ones(whole.stop, whole.stop, dtype=torch.bool)
    far[2:, 2:] = ((y[:, None] - y).abs() > reach) | ((x[:, None] - x).abs() > reach)
    through = (found.of_keys(whole) != 0).any(-1)  # of the keys of the grid that are not exact
    assert through.sum(1).tolist() == [(4 * 5 if masked else 5 * 7) - 3] * 3
    matrix = explicit(mixer, captured)
    valid = torch.ones(whole.stop, dtype=torch.bool)
    if masked:
        valid[2:] = captured.mask.flatten()
    told = (far if near else torch.ones_like(far)) & valid[:, None]
    for head in range(3):
        where = told & through[head]
        assert where.any()
        torch.testing.assert_close(product[head][where], matrix[head][where], rtol=0, atol=1e-9)


def test_importance_is_the_absolute_weight_through_a_landmark():
    torch.manual_seed(0)
    own = {"landmark_sampling": "mean", "landmark_grid": (3, 4)}
    model = timm.create_model("soft_nano", mixer="soft", mixer_args=own, **TINY).double().eval()
    for mixer in model.mixers:
        mixer.q.weight.data.mul_(100)
    image = torch.randn(3, 60, 90, dtype=torch.float64)
    for query in (None, (89, 59)):
        found = landmark_importance(model, image, query, stage=1)
        with torch.no_grad():
            x = model.stages[0](image[None])
            inner = model.stages[1]
            x = inner.embed(x)
            tokens = x.flatten(2).mT + inner.pos_embed(8, 12, None)
            q, k, _ = inner.blocks[0].attn.project(tokens)
            parts = factors(inner.blocks[0].attn, Captured(q, k, (8, 12), 0, None))
            whole = slice(0, 96)
            rows = parts.of_queries(whole) if query is None else parts.of_queries(slice(95, 96))
            each = (
                (rows[..., None] * parts.of_keys(whole).mT[:, None]).abs().sum((1, 3))
            )  # (H, M), all products at once
        torch.testing.assert_close(found.total, each.sum(1))
        torch.testing.assert_close(found.shares, each / each.sum(1, keepdim=True))
        torch.testing.assert_close(found.shares.sum(1), torch.ones(2, dtype=torch.float64))
    assert found.places.shape == (12, 2)
    torch.testing.assert_close(found.places[0], torch.tensor([16.0, 16.0]))  # of two windows of 2 tokens of 8 pixels


@pytest.mark.parametrize("mixer", ["nystrom", "linformer", "softn"])
def test_importance_of_other_mixers_with_landmarks(mixer):
    torch.manual_seed(0)
    model = timm.create_model("soft_nano", mixer=mixer, mixer_args={"landmark_grid": (3, 4)}, **TINY).eval()
    image, mask = torch.randn(3, 64, 96), torch.ones(64, 96, dtype=torch.bool)
    mask[:, 70:] = False
    found = landmark_importance(model, image, stage=0, mask=mask)
    torch.testing.assert_close(found.shares.sum(1), torch.ones(2))
    assert found.places.shape == (found.shares.shape[1], 2)
    assert found.places[:, 1].max() < 72
    assert found.shares.min() >= 0


def test_spectrum_and_residual():
    torch.manual_seed(0)
    model = timm.create_model("soft_nano", mixer=("soft", "nystrom", "elu_linear", "soft"), **TINY).double().eval()
    found = inverses(model, torch.randn(3, 64, 64, dtype=torch.float64))
    assert [(own.layer, own.mixer) for own in found] == [
        ("stages.0.blocks.0.attn", "soft"),
        ("stages.1.blocks.0.attn", "nystrom"),
        ("stages.3.blocks.0.attn", "soft"),
    ]
    first = found[0]
    assert first.solver == "newton, iters 20, ridge 0.01, start rowsum"
    assert first.spectrum.shape[0] == first.residual.shape[0] == 2
    assert (first.spectrum.diff(dim=1) <= 1e-12).all()
    # a kernel matrix has ones on its diagonal
    torch.testing.assert_close(first.spectrum.sum(1), torch.full((2,), float(first.spectrum.shape[1])).double())
    # eigenvalue s becomes s^2 / (s + ridge) of A Y A where the steps have converged
    missed = first.spectrum * 0.01 / (first.spectrum + 0.01)
    expected = missed.norm(dim=1) / first.spectrum.norm(dim=1)
    assert (first.residual >= 0.9 * expected).all()
    assert (first.residual <= 2 * expected).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model, image: landmark_importance(model, image), "is of elu_linear, a mixer without landmarks"),
        (lambda model, image: landmark_importance(model, image, stage=7), "stage must be 0 to 3"),
        (lambda model, image: inverses(model, image), "no layer that inverts"),
    ],
)
def test_networks_without_landmarks(ask, message):
    model = timm.create_model("soft_nano", mixer="elu_linear", **TINY)
    with pytest.raises(InputError, match=message):
        ask(model, torch.zeros(3, 64, 64))


def test_heads_count_by_how_much_goes_through_them():
    found = LandmarkImportance(
        torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.zeros(2, 2), torch.tensor([1.0, 9]), "", ""
    )
    torch.testing.assert_close(found.mean, torch.tensor([0.27, 0.73]))
