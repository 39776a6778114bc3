"""The row-normalised kernel: an exact identity, and what keeps its approximation near softmax."""

import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import create_mixer

GRID = [5, 6]


def points(spread: float = 1.0, prefix: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, prefix + 30, 8, generator=generator, dtype=torch.float64)
    return spread * q + 3, spread * k - 2, v  # means that a kernel without centring would not survive


def mix(q, k, v, grid=GRID, mask=None, **own) -> torch.Tensor:
    return create_mixer("softn", dim=16, num_heads=2, dtype=torch.float64, **own).mix(q, k, v, grid, mask)


def softmax(q, k, v) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def error(out, expected) -> float:
    return float((out - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("own", "most"),
    [({"exact_keys": 30}, 1e-12), ({"exact_keys": 0, "solver": {"name": "cholesky", "ridge": 1e-5}}, 1e-3)],
    ids=["keys", "landmarks"],
)
def test_with_all_keys_or_landmarks_it_is_softmax(own, most):
    q, k, v = points()
    assert error(mix(q, k, v, floor=0.0, **own), softmax(q, k, v)) < most


def test_keys_near_a_query_are_exact():
    q, k, v = points(2.0)
    few = {"landmark_grid": (2, 2), "exact_keys": 1}
    exact, *errors = (error(mix(q, k, v, near=near, **few), softmax(q, k, v)) for near in (2, 1, 0))
    assert exact < errors[0] < errors[1]
    # near=2 takes windows of 6 x 6, here all; but for the class token's query, which is near nothing
    whole = mix(q, k, v, near=2, floor=0.0, **few)[:, :, 1:]
    assert error(whole, softmax(q, k, v)[:, :, 1:]) < 1e-9


def test_the_heaviest_keys_are_exact():
    q, k, v = points()
    k[:, :, 11] += 2 * (q.mean(2) - k.mean(2))  # far from all landmarks, and liked by most queries
    few, none = (error(mix(q, k, v, exact_keys=count), softmax(q, k, v)) for count in (2, 0))
    assert few < none / 2


def test_maps_begin_as_the_identity_and_change_queries_and_keys():
    q, k, v = points()
    mixer = create_mixer("softn", dim=16, num_heads=2, dtype=torch.float64, maps=True, exact_keys=30, floor=0.0)
    torch.testing.assert_close(mixer.mix(q, k, v, GRID), softmax(q, k, v))
    with torch.no_grad():
        for own in (mixer.q_map, mixer.k_map):
            own.add_(0.2 * torch.randn(own.shape, generator=torch.Generator().manual_seed(1), dtype=own.dtype))
    torch.testing.assert_close(mixer.mix(q, k, v, GRID), softmax(q @ mixer.q_map, k @ mixer.k_map, v))


@pytest.mark.parametrize("near", [0, 1])
def test_padding_leaves_no_trace(near):
    q, k, v = points()
    mask = torch.zeros(2, *GRID, dtype=torch.bool)
    mask[:, :4, :5] = True
    inside = torch.cat([torch.ones(1, dtype=torch.bool), mask[0].flatten()])
    alone = mix(*(x[:, :, inside] for x in (q, k, v)), grid=[4, 5], landmark_grid=(3, 3), exact_keys=3, near=near)
    padded = mix(q, k, v, mask=mask, landmark_grid=(3, 3), exact_keys=3, near=near)
    torch.testing.assert_close(padded[:, :, inside], alone, rtol=1e-9, atol=1e-11)


def test_with_near_keys_it_is_exported_for_every_size():
    mixer = create_mixer("softn", dim=16, num_heads=2, dtype=torch.float64, near=1, landmark_grid=(3, 3))

    class OnMap(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = mixer

        def forward(self, x):
            return self.mixer(x.flatten(2).transpose(1, 2), [x.shape[2], x.shape[3]])

    height, width = (torch.export.Dim(side, min=4, max=64) for side in ("height", "width"))
    shapes = {"x": {2: height, 3: width}}
    program = torch.export.export(OnMap(), (torch.randn(1, 16, 12, 10).double(),), dynamic_shapes=shapes).module()
    for size in ((12, 10), (5, 21), (4, 4)):
        x = torch.randn(1, 16, *size, dtype=torch.float64)
        torch.testing.assert_close(program(x), OnMap()(x), rtol=1e-7, atol=1e-9)


def test_arguments_out_of_range():
    for own, message in (
        ({"exact_keys": -1}, "exact_keys must be 0 or more"),
        ({"floor": 1.0}, r"floor must be in \[0, 1\)"),
        ({"near": True}, "near must be a whole number"),
        ({"near": 1, "landmark_grid": (8,)}, "near must be 0 for sequences"),
        ({"maps": 1}, "maps must be True or False"),
    ):
        with pytest.raises(InputError, match=message):
            mix(*points(), **own)


@pytest.mark.parametrize("exact_keys", [0, 16])
@pytest.mark.parametrize("size", [1e3, 1e4, 1e6])
def test_far_padding_leaves_no_trace(exact_keys, size):
    mixer = create_mixer("softn", dim=16, num_heads=2, exact_keys=exact_keys)
    mask = torch.zeros(1, 5, 6, dtype=torch.bool)
    mask[:, :3, :3] = True
    for seed in range(8):
        torch.manual_seed(seed)
        q, k, v = torch.randn(3, 1, 2, 30, 8).unbind()
        valid = mask.flatten(1)[:, None, :, None]
        near, far = (mixer.mix(q, torch.where(valid, k, pad), v, [5, 6], mask) for pad in (0.0, size))
        torch.testing.assert_close(far.masked_fill(~valid, 0), near.masked_fill(~valid, 0))
        assert far.isfinite().all()
