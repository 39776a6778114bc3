import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from softmaxfree.tasks.callbacks import EpochSeed


class Stream:
    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch


def draw(seed=1, epoch=0, rank=0, world_size=2, dataset=None):
    """Random numbers of an epoch's start."""
    loader = SimpleNamespace(dataset=dataset)
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=world_size, train_dataloader=loader)
    EpochSeed(seed).on_train_epoch_start(trainer, None)
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002  timm's mixup draws from it


def test_an_epoch_always_starts_with_the_same_numbers():
    torch.rand(3), random.random()
    assert draw(epoch=3) == draw(epoch=3)


@pytest.mark.parametrize("other", [{"seed": 9}, {"epoch": 1}, {"rank": 1}])
def test_seed_epoch_and_process_make_a_difference(other):
    assert all(a != b for a, b in zip(draw(), draw(**other), strict=True))


def test_a_stream_is_told_the_epoch():
    stream = Stream()
    draw(epoch=5, dataset=stream)
    assert stream.epoch == 5
