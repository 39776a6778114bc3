"""Bags that are embedded are what their papers say."""

import pytest
import torch

from softmaxfree.data.digits import read_digits, split_digits
from softmaxfree.errors import InputError
from softmaxfree.mil.data import DigitBags, EmbeddedBagsDataModule, RaffHoltBags
from softmaxfree.mil.data.digit_features import digit_features


def test_mnist_bags_alternate_and_keep_images_apart():
    train, test = (DigitBags("mnist", [10], 2.0, 40, side, 1) for side in (True, False))
    side = {name: set(own.tolist()) for name, own in zip("ab", split_digits(read_digits()[1]), strict=True)}
    for bags, own in ((train, side["a"]), (test, side["b"])):
        assert [bag.label.item() for bag in bags] == [1, 0] * 20
        for drawn, bag in zip(bags._bags, bags, strict=True):
            assert bag.instances.any().item() == bool(bag.label)
            assert set(drawn.images.tolist()) <= own
            assert torch.equal(bag.features, digit_features("pixels")[torch.from_numpy(drawn.images)])
            assert bag.coords is None
    lengths = torch.tensor([len(bag.features) for bag in train]).float()
    assert lengths.mean().item() == pytest.approx(9.5, abs=0.8)  # int() cuts
    assert lengths.std().item() == pytest.approx(2, abs=0.7)


def test_the_needle_is_one_9():
    bags = DigitBags("needle", [50, 200], 0, 12, True, 1)
    assert [len(bag.features) for bag in bags] == [50, 50, 200, 200] * 3
    assert [bag.instances.sum().item() for bag in bags] == [1, 0] * 6


def test_only_coordinates_decide_on_the_pair():
    bags = DigitBags("pair", [60], 0, 60, True, 1)
    places = []
    for bag in bags:
        assert bag.instances.sum() == 2
        cells = bag.coords / bag.step
        assert len(cells.unique(dim=0)) == 60
        assert cells.max() == 7  # of the square of 8 x 8, of which the last cells are free
        nines = bag.instances.nonzero().flatten()
        touching = (cells[nines[0]] - cells[nines[1]]).abs().max() <= 1
        assert bool(touching) == bool(bag.label)
        places += nines.tolist()
    assert max(places) > 50  # the order of the file is by chance


@pytest.mark.slow
def test_trained_features_tell_digits_that_were_not_seen():
    features, labels = digit_features("trained"), read_digits()[1]
    assert features.shape == (5000, 64)
    train, held = split_digits(labels)
    assert features[train].mean(0).abs().max() < 1e-4
    solution = torch.linalg.lstsq(features[train], torch.nn.functional.one_hot(labels[train], 10).float()).solution
    assert ((features[held] @ solution).argmax(1) == labels[held]).float().mean() > 0.95


def concepts(bag, mean):
    """How many instances are near a sharp concept."""
    return int(((bag.features - mean).abs().mean(1) < 0.3).sum())


@pytest.mark.parametrize("train", [True, False])
def test_raff_and_holt(train):
    for i, bag in enumerate(RaffHoltBags("single_concept", 60, train, 0)):
        positive = i % 2 == 0
        assert bag.label.item() == positive
        assert concepts(bag, -10) == (positive != train)
        assert int(bag.instances.sum()) in ((1, 2, 3) if positive else (0,))
        assert bag.features.shape[1] == 16
    for i, bag in enumerate(RaffHoltBags("multi_concept", 60, train, 0)):
        both = concepts(bag, 2), concepts(bag, 3)
        assert concepts(bag, -10) == ((i % 2 == 0) != train)
        assert both[0] == both[1] > 0 if i % 2 == 0 else sorted(both) == [0, 1]
    for i, bag in enumerate(RaffHoltBags("false_frequency", 60, train, 0)):
        both = concepts(bag, -2), concepts(bag, 2)
        if i % 2 == 0:
            assert both == (1, 1)
        else:
            assert min(both) == 0
            assert max(both) == 1 if train else 35 <= max(both) <= 39
        assert concepts(bag, -10) == 0


def test_the_data_module_draws_training_bags_by_the_seed():
    first, second = (EmbeddedBagsDataModule(train_bags=4, val_bags=4, test_bags=4, seed=seed) for seed in (1, 2))
    for data in (first, second):
        data.setup("fit")
    assert not torch.equal(first.bags["train"][0].features, second.bags["train"][0].features)
    for split in ("val", "test"):
        assert torch.equal(first.bags[split][0].features, second.bags[split][0].features)
    assert first.num_images == {"train": 4, "val": 4, "test": 4}
    assert first.in_dim == 784
    batch = next(iter(first.val_dataloader()))
    assert batch.features.shape[2] == 784
    assert not EmbeddedBagsDataModule(test_bags=0).tests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "pairs"}, "data.kind must be mnist, needle, pair, single_concept"),
        ({"train_bags": 1}, "data.train_bags must be 2 or more"),
        ({"kind": "pair", "length": 4}, r"data.length or data.test_lengths must be 9 or more for pair, got 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        EmbeddedBagsDataModule(**arguments).setup("fit")
