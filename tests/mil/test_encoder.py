"""The encoder of bags: what may change nothing, its mixers, its class token's row."""

from itertools import pairwise

import pytest
import torch

from softmaxfree import ops
from softmaxfree.errors import InputError
from softmaxfree.mil import BagEncoder
from softmaxfree.mil.attention import ClassRow, SegmentAttention
from softmaxfree.mixers import list_mixers, mixer_class
from tests.mil.golden import MAX_BAG_EFFECT, shaken

SEQUENCE = [name for name in list_mixers() if 1 in mixer_class(name).ndims and name != "mhla"]
MIXERS = ["soft", *(name for name in SEQUENCE if name != "soft")]
# places in the sequence or its length count, or some keys are exact
_PLACES = {"cosformer", "rpe_kernel", "sigmoid", "softn", "softplus", "ttt"}


def model(dtype: torch.dtype = torch.float64, **own) -> BagEncoder:
    torch.manual_seed(0)
    made = BagEncoder(3, 12, **{"embed_dim": 16, "num_heads": 2, "num_landmarks": 8} | own)
    return shaken(made).to(dtype)


def bag(n: int = 60, side: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.randperm(side * side, generator=torch.Generator().manual_seed(1))[:n]
    x = torch.randn(n, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x, torch.stack((places % side, places // side), 1) * 512.0 + 1000


@pytest.mark.parametrize("mixer", MIXERS)
def test_order_and_shift_and_scale_change_nothing(mixer):
    own, (x, coords), order = model(mixer=mixer), bag(), torch.randperm(60)
    logits = own(x, coords=coords)
    for other in (coords + 7e5, coords * 1.5, coords.float(), coords.long()):
        torch.testing.assert_close(own(x[order], coords=other[order]), logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(own.tokens(x[order], coords=coords[order]), own.tokens(x, coords=coords)[:, order])


def test_patches_of_one_place_with_the_same_sum_have_an_order():
    own, (x, coords) = model(), bag()
    x[1:30] = x[:1].flip(1).roll(3, 1)
    x[:30:2], coords[:30] = x[0], coords[0]
    order = torch.cat((torch.randperm(30), torch.arange(30, 60)))
    torch.testing.assert_close(own(x[order], coords=coords), own(x, coords=coords), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_and_batch_mates_change_nothing(mixer):
    own, (x, coords) = model(torch.float32, mixer=mixer), bag()
    batch, places = torch.full((2, 90, 12), torch.nan), torch.full((2, 90, 2), torch.nan)
    batch[0, :60], places[0, :60], batch[1, :40], places[1, :40] = x, coords, 50.0, coords[:40] * 2
    mask = torch.arange(90) < torch.tensor([[60], [40]])
    out = own(batch.requires_grad_(), mask, places)
    torch.testing.assert_close(out[:1], own(x, coords=coords), rtol=0, atol=MAX_BAG_EFFECT)
    torch.testing.assert_close(out[1:], own(batch[1, :40].detach(), coords=coords[:40]), rtol=0, atol=MAX_BAG_EFFECT)
    out.sum().backward()
    assert not batch.grad[~mask].any()
    assert batch.grad[0, :60].any()
    assert own.tokens(batch.detach(), mask, places).shape == (2, 90, 16)


def test_empty_regions_change_nothing():
    own, (x, coords) = model(), bag()
    far = coords.clone()
    far[coords[:, 0] >= 1000 + 4 * 512] += 512.0 * 1024  # a power of two of cells, so that the curve keeps its order
    there = far[:, 0] < 1e5
    logits = own(x[there], coords=far[there])
    torch.testing.assert_close(own(x[there], coords=far[there] + 512.0 * 64), logits, rtol=0, atol=1e-13)
    assert own(x, coords=far).isfinite().all()


@pytest.mark.parametrize("mixer", sorted(set(MIXERS) - _PLACES))
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_patches_three_times_are_as_once(mixer, depth):
    own, (x, coords) = model(mixer=mixer, depth=depth), bag(64)
    expected = own(x, coords=coords)
    for repeat in (x.repeat_interleave(3, 0), coords.repeat_interleave(3, 0)), (x.repeat(3, 1), coords.repeat(3, 1)):
        torch.testing.assert_close(own(repeat[0], coords=repeat[1]), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_bag_of_the_same_patch_does_not_grow_with_its_number(mixer):
    own, x = model(mixer=mixer), torch.randn(1, 12, dtype=torch.float64)
    few, many = own(x.expand(80, -1)), own(x.expand(800, -1))
    # a place on the sequence, or its length, leaves little more than nothing
    torch.testing.assert_close(many, few, rtol=0, atol=2e-2 if mixer in _PLACES else 1e-8)


def test_coordinates_and_only_they_give_the_place():
    own, (x, coords) = model(), bag()
    logits = own(x, coords=coords)
    assert (own(x, coords=coords.flip(1)) - logits).abs().max() > 1e-3  # x and y swapped
    assert (own(x, coords=coords[torch.randperm(60)]) - logits).abs().max() > 1e-3
    assert (own(x) - own(x[torch.randperm(60)])).abs().max() > 1e-9  # landmarks are those of the file's order
    assert (own(x) - logits).abs().max() > 1e-3


def test_the_step_of_each_bag():
    own, (x, coords) = model(), bag()
    logits = own(x, coords=coords)
    torch.testing.assert_close(own(x, coords=coords, step=512), logits, rtol=0, atol=0)
    both = own(x.expand(2, -1, -1), coords=torch.stack((coords, coords * 2)), step=torch.tensor([512.0, 1024.0]))
    torch.testing.assert_close(both, logits.expand(2, -1), rtol=0, atol=1e-12)
    one_unknown = torch.tensor([torch.nan, 1024.0])
    torch.testing.assert_close(
        own(x.expand(2, -1, -1), coords=torch.stack((coords, coords * 2)), step=one_unknown), both
    )
    assert (own(x, coords=coords, step=256) - logits).abs().max() > 1e-3
    for wrong in ("512", True):
        with pytest.raises(InputError, match="step must be a number, or one for each bag"):
            own(x, coords=coords, step=wrong)
    with pytest.raises(InputError, match="step must be a number, or one for each of the 1 bags"):
        own(x, coords=coords, step=torch.ones(3))
    with pytest.raises(InputError, match="all 60 patches of the bag fall into one cell at step 1e\\+06 \\(given\\)"):
        own(x, coords=coords, step=1e6)


def test_the_class_token_has_its_exact_row_of_the_kernel():
    read, token, x = ClassRow(16, 2).double(), torch.randn(1, 1, 16).double(), torch.randn(1, 50, 16).double()
    x[:, 7] *= 1e3  # far from all others
    kernel = torch.stack([
        torch.exp(-((read.q(x)[0, :, h] - read.q(read.norm(token))[0, :, h]) ** 2).sum(1) / (2 * 8**0.5))
        for h in (slice(0, 8), slice(8, 16))
    ])  # fmt: skip
    torch.testing.assert_close(read.row(token, x)[0], kernel / kernel.sum(1, keepdim=True), rtol=0, atol=1e-10)
    values = read.v(x)[0].view(50, 2, 8)
    expected = torch.einsum("hn,nhd->hd", read.row(token, x)[0], values).flatten() + read.peak(x)[0].amax(0)
    torch.testing.assert_close(read(token, x)[0], expected, rtol=0, atol=1e-10)


def test_segment_attention_is_its_formula():
    own, x = SegmentAttention(16, 2, num_landmarks=5).double(), torch.randn(1, 23, 16).double()
    q, k, v = own.project(x)
    ends = [-(-23 * i // 5) for i in range(6)]
    landmarks = torch.stack([q[:, :, a:b].mean(2) for a, b in pairwise(ends)], 2)
    kernel = torch.exp(-torch.cdist(q, landmarks).square() / 2)
    inverse = ops.pinv(ops.gaussian_gram(landmarks), own.solver)
    torch.testing.assert_close(own.mix(q, k, v, [23]), kernel @ inverse @ kernel.mT @ v / 23, rtol=0, atol=1e-12)
    assert torch.equal(own.mix(q[:, :, :3], k[:, :, :3], v[:, :, :3], [3]).isfinite().all(), torch.tensor(True))


def test_at_first_a_patch_is_itself_and_a_share_of_its_neighbours():
    own = BagEncoder(3, 4, embed_dim=4, num_heads=1).double().eval()
    x, cells = torch.rand(9, 4, dtype=torch.float64), torch.cartesian_prod(torch.arange(3), torch.arange(3))
    h = own.embed(x)
    expected = h[4] + 0.5 * (h.sum(0) - h[4])
    torch.testing.assert_close(own.tokens(x, coords=cells)[0, 4], own.patch_norm(expected))
    torch.testing.assert_close(own.tokens(x)[0], own.patch_norm(h))
    torch.testing.assert_close(own(x)[0], own.patch_head(own.patch_norm(h)).amax(0))


def test_the_logits_are_those_of_the_class_token_and_of_the_most_telling_patch():
    own, (x, coords) = model(), bag()
    patches = own.tokens(x, coords=coords)
    of_patches = own.patch_head(patches)[0].amax(0)  # of three classes the highest of each
    expected = own.head(own.norm(own.read(patches, None)))[0] + of_patches
    torch.testing.assert_close(own(x, coords=coords)[0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"mixer": "mhla"}, "mixer must take sequences, but mhla takes images alone"),
        ({"mixer": "sofft"}, "mixer: there is no 'sofft'"),
        ({"mixer_args": {"num_landmarks": 0}}, "num_landmarks must be 1 or more, got 0"),
        ({"num_heads": 5}, "num_heads must divide the width 16, got 5"),
        ({"depth": -1}, "depth must be 0 or more, got -1"),
        ({"peaks": 1}, "peaks must be True or False, got 1"),
    ],
)
def test_bad_arguments_are_named(own, message):
    with pytest.raises(InputError, match=message):
        model(**own)


def test_bad_coordinates_are_named():
    own, (x, coords) = model(), bag()
    with pytest.raises(InputError, match=r"coords must be numbers \(1, 60, 2\), \(x, y\) of each patch, got"):
        own(x, coords=coords[:5])
    with pytest.raises(InputError, match="coords must be a tensor, got 'list'"):
        own(x, coords=coords.tolist())
    coords[3, 1] = torch.inf
    with pytest.raises(InputError, match="coords must be finite numbers, got 'NaN or infinity'"):
        own(x, coords=coords)
