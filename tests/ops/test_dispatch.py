"""Which implementation runs, and what the choice says when it cannot be had."""

import pytest
import torch

from softmaxfree.ops import dispatch, gaussian_product


@pytest.fixture
def points() -> list[torch.Tensor]:
    return [torch.randn(1, 2, n, 8) for n in (20, 5, 5)]


def test_cpu_runs_blocked(points):
    assert dispatch.choose("gaussian", *points).__name__.endswith("blocked")


@pytest.mark.parametrize("name", ["naive", "blocked"])
def test_forced(points, monkeypatch, name: str):
    monkeypatch.setenv("SOFTMAXFREE_GAUSSIAN", name)
    assert dispatch.choose("gaussian", *points).__name__.endswith(name)


def test_forced_in_vain_says_why_and_what_else(points, monkeypatch):
    monkeypatch.setenv("SOFTMAXFREE_GAUSSIAN", "blocked")
    with pytest.raises(ValueError, match=r"=blocked cannot run here \(.*blocked: tiles need .* naive: can run\)"):
        gaussian_product(*(z[0] for z in points))


def test_unknown_name(points, monkeypatch):
    monkeypatch.setenv("SOFTMAXFREE_GAUSSIAN", "cuda")
    with pytest.raises(ValueError, match=r"must be one of auto, .*naive; got 'cuda'"):
        gaussian_product(*points)


def test_each_op_has_its_own_variable(points, monkeypatch):
    monkeypatch.setenv("SOFTMAXFREE_NEWTON", "steps")
    assert dispatch.choose("newton", torch.eye(100)[None, None]).__name__.endswith("steps")
    assert dispatch.choose("gaussian", *points).__name__.endswith("blocked")


def test_other_ranks_fall_to_the_definition(points):
    expected = gaussian_product(*points)
    torch.testing.assert_close(gaussian_product(*(z[0] for z in points)), expected[0])


def test_explain_names_every_implementation(points):
    reasons = dispatch.explain("gaussian", *points)
    assert reasons["blocked"] == reasons["naive"] == []
    assert dispatch.explain("newton", torch.eye(9)[None, None])["spectral"] == [
        "stepping is as fast below 65 landmarks, got 9"
    ]


def test_the_last_implementation_runs_everywhere():
    halves = [torch.randn(3, 4, device="meta", dtype=torch.bfloat16)] * 3
    for op, table in dispatch.IMPLEMENTATIONS.items():
        assert list(dispatch.explain(op, *halves[: 3 if op == "gaussian" else 1]).values())[-1] == []
        assert len(table) > 1
