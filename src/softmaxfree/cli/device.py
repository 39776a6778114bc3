"""Where a command runs its model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from softmaxfree.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["find_device", "num_processes", "trainer_options"]


def find_device(name: str = "auto") -> torch.device:
    """Return the device of a name.

    Args:
        name: "auto" for the accelerator that is there (cuda, mps, ...) or else the CPU; or a device such as "cuda:1".

    Returns:
        The device.

    Raises:
        InputError: there is no such device here.
    """
    import torch  # which help need not wait for

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    there = ["cpu"]
    if accelerator is not None:
        there += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in there:
        raise InputError(f"--device {name} cannot be used here; choose from auto, {', '.join(there)}")
    return torch.device(name)


def trainer_options(name: str) -> list[str]:
    """Return what makes a Trainer use a device; other options of the same keys come after these, and win.

    Args:
        name: as for `find_device`.

    Returns:
        Overrides of a recipe; none for "auto", which leaves the choice to the recipe.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return []
    kind, _, number = str(find_device(name)).partition(":")
    return [f"--trainer.accelerator={kind}", *([f"--trainer.devices=[{number}]"] if number else [])]


def num_processes(trainer: Any) -> tuple[int, int]:
    """Return how many processes train: `torchrun` tells them, or else the arguments of the Trainer.

    Args:
        trainer: its arguments `accelerator`, `devices` and `num_nodes`.

    Returns:
        Those of all machines, and those of this one.
    """
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    import torch

    devices = trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = [own for own in devices.split(",") if own.strip()]
    if isinstance(devices, list | tuple):
        here = len(devices)
    elif str(devices) in ("auto", "-1"):
        of_gpus = trainer.accelerator != "cpu" and find_device().type == "cuda"
        here = torch.accelerator.device_count() if of_gpus else 1
    else:
        here = int(devices)
    return max(here, 1) * trainer.num_nodes, max(here, 1)
