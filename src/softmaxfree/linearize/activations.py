"""What the teacher makes of pictures, kept in files: its final features, and what its attention gets and gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softmaxfree.atomic import atomic_write
from softmaxfree.linearize.pictures import Pictures, device_of
from softmaxfree.models.exchange import attention_blocks

__all__ = ["Activations", "in_tokens"]


class Activations:
    """Features and attention of a teacher, computed once for each picture and size, and kept in files.

    They are in half precision, or as they are where that does not hold them.

    Args:
        teacher: a model of timm, in evaluation mode.
        pictures: what it sees.
        folder: where files are kept.
    """

    def __init__(self, teacher: nn.Module, pictures: Pictures, folder: Path) -> None:
        self._teacher, self._pictures, self._folder = teacher, pictures, folder

    def features(self, numbers: Sequence[int], size: int) -> Tensor:
        """Returns the final features of pictures as tokens, `(B, N, C)` float32 on the CPU, prefix tokens first."""
        return torch.stack([self._kept(i, size, "features", self._compute_features).float() for i in numbers])

    def attention(self, number: int, size: int, block: int) -> tuple[tuple, dict[str, Any], Tensor]:
        """Returns what the attention of a block gets of one picture, by place and by name, and what it gives.

        Args:
            number: of the picture.
            size: height and width in pixels.
            block: number of the block.

        Returns:
            Arguments, whose first are tokens `(1, N, C)`, arguments by name, and the result `(1, N, C)`: float32, on
            the device of the teacher.
        """
        kept = self._kept(number, size, f"attention{block}", self._compute_attention, block)
        device = device_of(self._teacher)
        args, kwargs, out = (_each(part, lambda x: x.to(device), lambda x: x.float()) for part in kept)
        return args, kwargs, out

    def _kept(self, number: int, size: int, what: str, compute: Any, *asked: Any) -> Any:
        path = self._folder / str(size) / f"{number}_{what}.pt"
        if not path.is_file():
            compute(number, size, *asked)
        return torch.load(path, weights_only=True)

    def _keep(self, number: int, size: int, what: str, value: Any) -> None:
        with atomic_write(self._folder / str(size) / f"{number}_{what}.pt") as part:
            torch.save(value, part)

    @torch.no_grad()
    def _compute_features(self, number: int, size: int) -> None:
        x = self._pictures.batch([number], size, self._teacher)
        model: Any = self._teacher
        self._keep(number, size, "features", _halved(in_tokens(model.forward_features(x))[0]))

    @torch.no_grad()
    def _compute_attention(self, number: int, size: int, block: int) -> None:
        """Keeps all blocks at once: the teacher runs as a whole."""
        model: Any = self._teacher

        def seen(i: int) -> Any:
            def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Tensor) -> None:
                self._keep(number, size, f"attention{i}", _halved((args, kwargs, out)))

            return hook

        own = attention_blocks(model)
        handles = [each.register_forward_hook(seen(i), with_kwargs=True) for i, each in enumerate(own)]
        try:
            x = self._pictures.batch([number], size, model)
            self._keep(number, size, "features", _halved(in_tokens(model.forward_features(x))[0]))
        finally:
            for handle in handles:
                handle.remove()


def in_tokens(features: Tensor) -> Tensor:
    """Returns features as tokens `(B, N, C)`, of a pyramid those of its last map `(B, C, Y, X)`."""
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def _halved(value: Any) -> Any:
    """Half precision where it holds the numbers. A copy, else the file holds all that a tensor is a view of."""
    most = torch.finfo(torch.half).max
    return _each(value, lambda x: x.detach().cpu().clone(), lambda x: x.half() if bool((x.abs() < most).all()) else x)


def _each(value: Any, change: Any, change_floats: Any) -> Any:
    """Changes the tensors in nested arguments, and further those of floating point."""
    if isinstance(value, Tensor):
        value = change(value)
        return change_floats(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _each(own, change, change_floats) for key, own in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_each(own, change, change_floats) for own in value)
    return value
