"""Where a command runs its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softmaxfree.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["find_device", "trainer_options"]


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
