"""Which implementation runs, and what the choice says when it cannot be had."""

import pytest
import torch

from softmaxfree.ops import dispatch, gaussian_product


@pytest.fixture
def points() -> list[torch.Tensor]:
    return [torch.randn(1, 2, n, 8) for n in (20, 5, 5)]


def test_cpu_runs_blocked(points):
    assert dispatch.gaussian(*points).__name__.endswith("blocked")


@pytest.mark.parametrize("name", ["naive", "blocked"])
def test_forced(points, monkeypatch, name: str):
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, name)
    assert dispatch.gaussian(*points).__name__.endswith(name)


def test_forced_in_vain_says_why_and_what_else(points, monkeypatch):
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "blocked")
    with pytest.raises(
        ValueError, match=r"=blocked cannot run here \(.*blocked: tiles need .* naive: can run\)"
    ):
        gaussian_product(*(z[0] for z in points))


def test_unknown_name(points, monkeypatch):
    monkeypatch.setenv(dispatch.BACKEND_VARIABLE, "cuda")
    with pytest.raises(ValueError, match=r"must be one of auto, .*naive; got 'cuda'"):
        gaussian_product(*points)


def test_other_ranks_fall_to_the_definition(points):
    expected = gaussian_product(*points)
    torch.testing.assert_close(gaussian_product(*(z[0] for z in points)), expected[0])


def test_explain_names_every_implementation(points):
    reasons = dispatch.explain_gaussian(*points)
    assert reasons["blocked"] == reasons["naive"] == []
