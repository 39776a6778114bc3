import pytest
import torch
from torch.utils.data import TensorDataset

from softmaxfree.data.loaders import EpochSampler, eval_loader, train_loader

DATASET = TensorDataset(torch.arange(21))


def batches(loader):
    return [batch.tolist() for (batch,) in loader]


class FakeTrainer:
    """As much of a Trainer as the loaders ask for."""

    def __init__(self, world_size=1, rank=0, epoch=0):
        self.world_size, self.global_rank = world_size, rank
        self.fit_loop = self
        self.epoch_progress = self
        self.current = self
        self.processed = epoch


def loader(**trainer):
    return train_loader(DATASET, batch_size=4, num_workers=0, seed=1, trainer=FakeTrainer(**trainer))


def test_order_depends_on_seed_and_epoch_alone():
    first = batches(loader(epoch=3))
    assert first == batches(loader(epoch=3))
    assert first != batches(loader(epoch=4))
    moved = loader(epoch=0)
    moved.sampler.set_epoch(3)
    assert first == batches(moved)


def test_training_batches_are_full():
    assert [len(batch) for batch in batches(loader())] == [4] * 5


def test_processes_together_see_the_batches_of_one():
    alone = train_loader(DATASET, batch_size=8, num_workers=0, seed=1, trainer=None)
    ranks = [batches(loader(world_size=2, rank=rank)) for rank in range(2)]
    together = [sorted(a + b) for a, b in zip(*ranks, strict=True)]
    assert together == [sorted(batch) for batch in batches(alone)]


def test_workers_are_seeded_by_seed_and_epoch():
    seeds = []
    for epoch in (0, 1, 0):
        sampler = EpochSampler(DATASET, 1, 0, seed=1)
        sampler.set_epoch(epoch)
        seeds.append(sampler.generator.initial_seed())
    assert seeds[0] == seeds[2] != seeds[1]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_image_is_validated_once(world_size):
    seen = []
    for rank in range(world_size):
        trainer = FakeTrainer(world_size, rank)
        for batch in batches(eval_loader(DATASET, batch_size=4, num_workers=0, trainer=trainer)):
            seen += batch
    assert sorted(seen) == list(range(21))


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"data.batch_size is 22, but there are only 21 training images"):
        train_loader(DATASET, batch_size=22, num_workers=0, seed=1, trainer=None)
