"""Attention of the class token, contributions that sum to the logits, and their memory."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from softmaxfree.bench.memory import peak_bytes
from softmaxfree.errors import InputError
from softmaxfree.mil import TransMIL, create_bag_model, list_bag_models, nystrom
from softmaxfree.mil.maps import attention, contributions, top_patches
from tests.mil.golden import MAX_ERROR, distance, shaken, tensors, transmil, weights

GRID = torch.cartesian_prod(torch.arange(7), torch.arange(7))[:40] * 256.0


def test_golden_maps():
    golden, bag = tensors("transmil_heatmap"), tensors("transmil")["x_50"].double()
    model = transmil().train()
    every = attention(model, bag, head="all")
    assert model.training
    assert distance(every, golden["attention64"]) < MAX_ERROR[torch.float64]
    assert distance(attention(model, bag), every.mean(0)) < 1e-15
    assert torch.equal(attention(model, bag[0], head=3), every[3])
    parts = contributions(model, bag)
    assert distance(parts.patches, golden["contribution64"]) < MAX_ERROR[torch.float64]
    assert distance(parts.base, golden["base64"]) < MAX_ERROR[torch.float64]
    # the file has the class token's part for the first class alone, see golden/mil/README.md
    assert parts.class_token[0].item() == pytest.approx(golden["contribution_class_token64"][0].item(), rel=1e-12)
    rest = tensors("transmil")["logits64_50"][0] - golden["contribution64"].sum(1) - golden["base64"]
    assert distance(parts.class_token, rest) < MAX_ERROR[torch.float64]


def test_the_map_of_torchmil_and_of_the_first_layer():
    golden = tensors("transmil_torchmil")
    model = TransMIL.from_checkpoint(weights("transmil_torchmil"), num_heads=4).double()
    ours, theirs = attention(model, golden["x_50"].double()), golden["attention64_50"][0]
    assert distance(ours[14:], theirs[14:]) < MAX_ERROR[torch.float64]  # 14 have copies, which torchmil leaves out
    assert (ours[:14] - theirs[:14]).abs().min() > 0
    first = attention(transmil(), tensors("transmil")["x_50"].double(), layer=0, head="all")
    expected = tensors("transmil")["cls_row64.0"][0, :, 1:]
    folded = expected[:, :50].clone()
    folded[:, :14] += expected[:, 50:]
    assert distance(first, folded) < MAX_ERROR[torch.float64]


@pytest.mark.parametrize("pad_mode", ["official-0.0.9", "none"])
def test_contributions_of_other_pad_modes(pad_mode):
    model, bag = transmil(pad_mode=pad_mode), tensors("transmil")["x_50"].double()
    assert distance(contributions(model, bag).logits, model(bag)[0]) < MAX_ERROR[torch.float64]


@pytest.mark.parametrize("name", list_bag_models())
@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_contributions_sum_to_the_logits(name, num_classes):
    model = shaken(create_bag_model(name, num_classes=num_classes, in_dim=12, embed_dim=16)).double()
    x = torch.randn(40, 12, dtype=torch.float64)
    parts = contributions(model, x, GRID)
    assert parts.patches.shape == (num_classes, 40)
    assert distance(parts.logits, model(x, coords=GRID)[0]) < MAX_ERROR[torch.float64]
    assert not parts.logits.requires_grad


@pytest.mark.parametrize("name", list_bag_models())
def test_maps_follow_the_order_of_the_patches(name):
    model = shaken(create_bag_model(name, num_classes=2, in_dim=12, embed_dim=16)).double()
    x, order = torch.randn(40, 12, dtype=torch.float64), torch.randperm(40)
    if name == "transmil":  # which takes the order for the place
        order = torch.arange(40)
    scores, parts = attention(model, x, GRID), contributions(model, x, GRID).patches
    assert scores.shape == (40,)
    torch.testing.assert_close(attention(model, x[order], GRID[order]), scores[order], rtol=0, atol=1e-14)
    moved = contributions(model, x[order], GRID[order]).patches
    torch.testing.assert_close(moved, parts[:, order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", list_bag_models())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_of_networks_in_half_precision(name, dtype):
    model, x = shaken(create_bag_model(name, num_classes=3, in_dim=12, embed_dim=16)).to(dtype), torch.randn(40, 12)
    parts = contributions(model, x, GRID)
    assert parts.patches.dtype == attention(model, x, GRID).dtype == torch.float32
    torch.testing.assert_close(parts.logits, model(x, coords=GRID)[0].float(), rtol=0, atol=2e-2)


def test_attention_of_pooling():
    x = torch.randn(9, 12)
    own = create_bag_model("gated_attention", num_classes=2, in_dim=12, embed_dim=16)
    assert torch.equal(attention(own, x), own.weights(own.embed(x[None]), None)[0, :, 0])
    assert attention(create_bag_model("mean", num_classes=2, in_dim=12), x).tolist() == pytest.approx([1 / 9] * 9)
    greatest = attention(create_bag_model("instance_max", num_classes=2, in_dim=12), x)
    assert sorted(greatest.tolist()) == [0] * 8 + [1]


# a matrix of landmarks times patches for all heads would be 195 MiB
@pytest.mark.parametrize("name", ["transmil", "bag_encoder"])
def test_memory_of_50_000_patches(name):
    own = {"num_heads": 8, "num_landmarks": 128, "embed_dim": 32, "depth": 1}
    model = create_bag_model(name, num_classes=2, in_dim=8, **own).eval()
    x, places = torch.randn(50_000, 8), torch.arange(50_000)
    coords = torch.stack((places % 250, places // 250), 1) * 256.0
    found = []

    def maps() -> None:
        found.append(attention(model, x, coords, step=256).shape)

    assert peak_bytes(maps, torch.device("cpu")) < 100 * 2**20
    assert found == [(50_000,)]


# linear in the patches: 50,000 of them, their features of 195 MiB and 750 MiB of imports stay below 2 GiB
def test_memory_of_a_map_at_the_size_of_the_original(monkeypatch):
    monkeypatch.setattr(nystrom, "_AT_ONCE", 500)  # a part as small beside the bag as of 50,000 patches
    model, x = TransMIL(2).eval(), torch.randn(6000, 1024)
    found = [peak_bytes(lambda n=n: attention(model, x[:n]), torch.device("cpu")) for n in (3000, 6000)]
    per_patch = (found[1] - found[0]) / 3000
    assert 50_000 * per_patch + found[0] < 900 * 2**20


@pytest.mark.parametrize("name", ["transmil", "bag_encoder"])
def test_work_and_memory_are_linear_in_the_patches(name):
    own = {"num_heads": 2, "num_landmarks": 16, "embed_dim": 16}
    model = create_bag_model(name, num_classes=2, in_dim=8, **own).eval()
    found = []
    for side in (71, 224):  # 5,041 and 50,176 patches
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)) * 256.0
        x = torch.randn(len(places), 8)
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                model(x, coords=places)
            memory = peak_bytes(lambda x=x, places=places: model(x, coords=places), torch.device("cpu"))
        found.append((len(x), counter.get_total_flops(), memory))
    patches, flops, memory = (math.log(large / small) for small, large in zip(*found, strict=True))
    assert 0.95 < flops / patches < 1.05
    assert memory / patches < 1.05


def test_top_patches():
    scores, coords = torch.tensor([0.1, 3.0, 3.0, -5.0]), torch.tensor([[0, 0], [512, 0], [0, 512], [9, 9]])
    found = top_patches(scores, 3, coords)
    assert [(patch.number, patch.score, patch.place) for patch in found[:2]] == [(1, 3.0, (512, 0)), (2, 3.0, (0, 512))]
    assert len(top_patches(scores, 99)) == 4
    assert found[2].number == 0


def test_bad_input_is_named():
    model, bag = transmil(torch.float32), torch.zeros(5, 12)
    with pytest.raises(InputError, match="layer must be 0 to 1, or from -1 backwards, got 2"):
        attention(model, bag, layer=2)
    with pytest.raises(InputError, match="head must be 0 to 7, 'mean' or 'all', got 8"):
        attention(model, bag, head=8)
    with pytest.raises(InputError, match=r"x must be one bag, \(N, D\) or \(1, N, D\), got \(2, 5, 12\)"):
        contributions(model, torch.zeros(2, 5, 12))
    with pytest.raises(InputError, match=r"model must be a network of softmaxfree\.mil, got Linear"):
        attention(nn.Linear(12, 2), bag)
    mean = create_bag_model("mean", num_classes=2, in_dim=12)
    with pytest.raises(InputError, match="layer must be -1: this network has one layer with a class token, got 1"):
        attention(mean, bag, layer=1)
    with pytest.raises(InputError, match="count must be 1 or more, got 0"):
        top_patches(torch.zeros(3), 0)
    with pytest.raises(InputError, match=r"coords must be \(3, 2\), got \(2, 2\)"):
        top_patches(torch.zeros(3), 1, torch.zeros(2, 2))
