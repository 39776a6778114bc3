"""How a teacher becomes a student: the settings of a run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from softmaxfree.arguments import require, require_number, require_whole
from softmaxfree.errors import InputError

__all__ = ["Settings"]

_FEW = 24  # patches a side, up to which time counts less than likeness


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run of `linearize` depends on.

    Attributes:
        size: sizes of images in pixels, at which the student learns in turn; the first is that of its positions.
        mixer: name of the mixer.
        mixer_args: its arguments, or those of each exchanged block; None are those of `arguments`.
        blocks: numbers of the blocks whose attention is exchanged; None for all.
        batch_size: images of a step.
        block_steps: steps of each block towards the teacher's outputs.
        steps: steps of the whole network towards the teacher's features.
        label_steps: steps with labels, of a new head too; 0 for none.
        train: what learns end to end: "mixer", the weights of the mixers alone; "attention"; or "all", all blocks.
        block_lr: largest learning rate of a block.
        lr: largest learning rate of the mixers end to end; other weights have a tenth, a new head ten times as much.
        block_images: pictures that blocks are trained on, and a quarter as many held out to tell whether they gained.
        measured: held-out pictures that features are compared on.
        probe_images: training pictures that the probe is fitted on, where there are labels.
        bf16: whether linear layers learn in bfloat16, on devices that are fast at it.
        seed: of the split and the order of pictures.
    """

    size: Sequence[int]
    mixer: str = "softn"
    mixer_args: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    blocks: Sequence[int] | None = None
    batch_size: int = 4
    block_steps: int = 50
    steps: int = 60
    label_steps: int = 0
    train: Literal["mixer", "attention", "all"] = "mixer"
    block_lr: float = 3e-3
    lr: float = 3e-4
    block_images: int = 16
    measured: int = 64
    probe_images: int = 256
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InputError for a setting out of range."""
        if not self.size:
            raise InputError("size must be one number of pixels or several, got none")
        for size in self.size:
            require_whole("size", size, 1)
        require(len(set(self.size)) == len(self.size), "size", self.size, "different numbers")
        for name in ("batch_size", "block_images", "measured", "probe_images"):
            require_whole(name, getattr(self, name), 1)
        for name in ("block_steps", "steps", "label_steps", "seed"):
            require_whole(name, getattr(self, name), 0)
        for name in ("block_lr", "lr"):
            require_number(name, getattr(self, name), 0)
        require(self.train in ("mixer", "attention", "all"), "train", self.train, "mixer, attention or all")

    def arguments(self, chosen: Sequence[int], depth: int, side: int) -> Mapping[str, Any] | list[dict[str, Any]]:
        """Returns the arguments of the mixer.

        By default those of `softn` let queries and keys learn. On small images near keys are exact in all blocks; on
        large ones in the first third alone, where heads see neighbours alone, and with fewer landmarks.

        Args:
            chosen: numbers of the exchanged blocks.
            depth: how many blocks there are.
            side: patches a side of the largest image; 0 for a pyramid, which reduces its keys.

        Returns:
            A dict, or one for each exchanged block.
        """
        if self.mixer_args is not None or self.mixer != "softn":
            given = self.mixer_args or {}
            return given if isinstance(given, Mapping) else [dict(own) for own in given]
        if side <= _FEW:
            return {"maps": True, "near": int(side > 0)}
        return [{"maps": True, "near": int(1 <= i <= depth // 3), "landmark_grid": [8, 8]} for i in chosen]
