"""Loaders whose every epoch can be repeated: order and random numbers depend on (seed, epoch) alone.

A run that was killed and resumed sees what it would have seen, in one process or in many.
"""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from softmaxfree.errors import InputError

__all__ = ["EpochSampler", "eval_loader", "train_loader"]


class EpochSampler(DistributedSampler):
    """Shuffles by (seed, epoch), and draws the workers' seeds from the same two numbers.

    Args:
        dataset: what to draw from.
        world_size: number of processes.
        rank: number of this process.
        seed: seed of the run.
    """

    def __init__(self, dataset: Dataset, world_size: int, rank: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=True, seed=seed)
        self.generator = torch.Generator()  # a DataLoader seeds its workers from it
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch; the Trainer calls this before each one."""
        super().set_epoch(epoch)
        self.generator.manual_seed(self.seed + epoch)


def train_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    trainer: Trainer | None,
    collate_fn: Callable[[list], Any] | None = None,
    prefetch: int | None = None,
) -> DataLoader:
    """Return a shuffling loader of full batches.

    Args:
        dataset: images and labels; an `IterableDataset` shuffles and splits itself among processes.
        batch_size: images a process and step.
        num_workers: worker processes; 0 loads in the training process.
        seed: seed of the run.
        trainer: tells the processes and the epoch; None is one process at epoch 0.
        collate_fn: makes a batch of samples.
        prefetch: batches that each worker holds; None leaves it to torch.

    Returns:
        The loader, at the trainer's epoch.

    Raises:
        InputError: there are fewer images than one batch needs.
    """
    # With workers, fetching starts when the Trainer gets the loader, before it calls `set_epoch`.
    progress: Any = trainer.fit_loop.epoch_progress.current if trainer else None
    epoch = progress.processed if progress else 0
    shared: dict[str, Any] = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "drop_last": True,
        "pin_memory": torch.cuda.is_available(),
        "collate_fn": collate_fn,
        "prefetch_factor": prefetch if num_workers else None,
    }
    if isinstance(dataset, IterableDataset):
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        return DataLoader(dataset, generator=torch.Generator().manual_seed(seed + epoch), **shared)
    sampler = EpochSampler(dataset, *_processes(trainer), seed)
    sampler.set_epoch(epoch)
    if len(sampler) < batch_size:
        raise InputError(
            f"data.batch_size is {batch_size}, but there are only {len(sampler)} training images a process"
        )
    return DataLoader(dataset, sampler=sampler, generator=sampler.generator, **shared)


def eval_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    num_workers: int,
    trainer: Trainer | None,
    collate_fn: Callable[[list], Any] | None = None,
    prefetch: int | None = None,
) -> DataLoader:
    """Return a loader that shows each image once, whatever the number of processes.

    Args:
        dataset: images and labels.
        batch_size: images a process and step; the last batch may be smaller.
        num_workers: worker processes.
        trainer: tells the processes; None is one process.
        collate_fn: makes a batch of samples.
        prefetch: batches that each worker holds; None leaves it to torch.

    Returns:
        The loader.
    """
    world_size, rank = _processes(trainer)
    split = world_size > 1 and not isinstance(dataset, IterableDataset)
    if split and len(dataset) < world_size:  # type: ignore[arg-type]
        raise InputError(f"{len(dataset)} to measure are too few for {world_size} processes: each needs one")  # type: ignore[arg-type]
    # The usual sampler repeats images to fill the last batches, which would count them twice.
    sampler = UnrepeatedDistributedSampler(dataset, world_size, rank, shuffle=False) if split else None
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate_fn,
        prefetch_factor=prefetch if num_workers else None,
    )


def _processes(trainer: Trainer | None) -> tuple[int, int]:
    return (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
