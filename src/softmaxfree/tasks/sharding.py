"""Weights sharded over processes (FSDP2)."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.models.vision_transformer import Block as PreNormBlock
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from softmaxfree.errors import InputError
from softmaxfree.layers import Block

__all__ = ["broadcast_buffers", "is_sharded", "read_sharded", "shard"]


def shard(model: nn.Module, strategy: ModelParallelStrategy) -> None:
    """Shard each block of a model, then the rest, over the data-parallel processes; once.

    Args:
        model: the model of a task.
        strategy: tells the processes.

    Raises:
        InputError: the strategy splits tensors, which no model here does.
    """
    if strategy.device_mesh["tensor_parallel"].size() > 1:
        raise InputError(
            "trainer.strategy: tensor_parallel_size must be 1 and data_parallel_size the number of processes; "
            "weights are sharded over data-parallel processes alone"
        )
    if isinstance(model, FSDPModule):  # of an earlier call of the Trainer
        return
    mesh = strategy.device_mesh["data_parallel"]
    for module in list(model.modules()):
        if isinstance(module, Block | PreNormBlock):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "forward_train"):  # a segmenter's way in
        register_fsdp_forward_method(model, "forward_train")


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first, as DDP does: the statistics of batch norm are of its images."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten().float() for buffer in buffers])
    dist.broadcast(flat, 0)
    for buffer, new in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(new.view_as(buffer))


def is_sharded(path: Path) -> bool:
    """Return whether a path is the folder of a checkpoint that the processes have written together."""
    return (path / ".metadata").is_file()


def read_sharded(path: Path) -> dict[str, Tensor]:
    """Read the whole weights of a task's model from a sharded checkpoint, in one process.

    Its index is a pickle, which torch's reader runs: read only what you trust.

    Args:
        path: the folder.

    Returns:
        The state dict.

    Raises:
        InputError: it cannot be read.
    """
    prefix = "state_dict.model."
    try:
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        weights = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in stored.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        nested = {"state_dict": {name.removeprefix("state_dict."): weight for name, weight in weights.items()}}
        dcp.load(nested, checkpoint_id=path, no_dist=True)
    except (dcp.api.CheckpointException, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:400]}") from error
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}
