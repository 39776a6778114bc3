"""Is the file the model? It runs on a photograph at sizes that it was not exported at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.export.programs import Program
from softmaxfree.images import read_image

__all__ = ["LIMITS", "TRAINED", "Difference", "Run", "check", "check_runs", "listed", "photograph", "sizes_of"]

LIMITS = {"float": 1e-4, "half": 2e-2}
"""Largest difference that is allowed, as a part of the range of an output."""

TRAINED = "training"
"""Where a size comes from that is not of the landmark budget."""

Run = Callable[..., list[Tensor]]
"""A loaded file: tensors in, tensors out."""


class Difference(NamedTuple):
    """Of file and model on one batch: the largest of all outputs, as a part of the output's range."""

    batch: int
    height: int
    width: int
    where: str
    value: float


def sizes_of(program: Program) -> dict[str, tuple[int, int]]:
    """Return sizes below, at and above the landmark budget, none of them square."""
    (y, x), cell, least = program.budget, program.cell, program.smallest
    found = {
        "below": (max(y * 5 // 8 - 1, least), max(x * 7 // 16 + 2, least + 9)),
        "at": (max(y, least + 2), max(x + cell // 2, least + 21)),  # windows of which a part is missing do not count
        "above": (max(y * 9 // 8 + 5, least + 30), max(x * 11 // 8 + 3, least + 50)),
    }
    step = program.step
    return {where: (-(-height // step) * step, -(-width // step) * step) for where, (height, width) in found.items()}


def photograph(file: str | Path | None, data_config: dict[str, Any], channels: int) -> Tensor:
    """Return a photograph `(1, channels, height, width)`, normalised.

    Args:
        file: of an image; None is that of an astronaut, which scikit-image brings.
        data_config: `mean` and `std`.
        channels: of the images.

    Returns:
        The photograph; in more than three channels the first three are repeated.

    Raises:
        InputError: the file is no image.
        OSError: the file cannot be read.
    """
    if file is None:
        from skimage import data

        pixels = data.astronaut()
    else:
        pixels = np.array(read_image(Path(file).expanduser(), "RGB"))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    image = image.mean(1, keepdim=True) if channels == 1 else image[:, [i % 3 for i in range(channels)]]
    mean, std = (torch.tensor(data_config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (image - mean) / std


@torch.no_grad()
def check(
    program: Program, run: Run, image: Tensor, limit: float, trained: tuple[int, int] | None = None
) -> list[Difference]:
    """Compare a file with the model at three sizes, in batches of one and of two.

    Args:
        program: what was exported.
        run: the file.
        image: see `photograph`.
        limit: the largest difference that is allowed, a part of the range of an output.
        trained: height and width that are looked at too.

    Returns:
        The differences.

    Raises:
        InputError: one is larger, or the file does not run.
    """
    found = []
    for where, size in (sizes_of(program) | ({} if trained is None else {TRAINED: trained})).items():
        for batch in (1, 2):
            inputs = example(program, image, batch, size)
            outputs = _ran(run, inputs)
            worst = max(_part(a, b) for a, b in zip(outputs, listed(program.exact(*inputs)), strict=True))
            found.append(Difference(batch, *size, where, worst))
            if not worst <= limit:  # nan too
                raise InputError(
                    f"out: the file differs from the model by {worst:.1e} of the output's range at "
                    f"{batch}x{size[0]}x{size[1]} pixels, allowed are {limit:g}; nothing was written"
                )
    return found


def check_runs(program: Program, run: Run, image: Tensor) -> None:
    """Raises InputError where a file, which is not that exact, does not run at the sizes of `check`."""
    for size in sizes_of(program).values():
        for batch in (1, 2):
            outputs = _ran(run, example(program, image, batch, size))
            if not all(out.isfinite().all() for out in outputs):
                raise InputError(f"out: the file returns numbers that are not finite at {batch}x{size[0]}x{size[1]}")


def _ran(run: Run, inputs: Sequence[Tensor]) -> list[Tensor]:
    try:
        return run(*inputs)
    except Exception as error:  # whatever a runtime raises
        batch, _, height, width = inputs[0].shape
        raise InputError(f"out: the file does not run at {batch}x{height}x{width}: {error}") from error


def example(program: Program, image: Tensor, batch: int, size: tuple[int, int]) -> list[Tensor]:
    """Return inputs of a program: the photograph at a size, paler from image to image; with masks of smaller ones."""
    one = F.interpolate(image, size=size, mode="bilinear", antialias=True)
    inputs = [torch.cat([one * (1 - 0.2 * i) for i in range(batch)])]
    if "mask" in program.inputs:
        mask = torch.ones(batch, *size, dtype=torch.bool)
        mask[-1, max(size[0] - 7, program.smallest) :] = False
        inputs.append(mask)
    return inputs


def listed(out: Any) -> list[Tensor]:
    """Return outputs as a list, of one too."""
    return [out] if isinstance(out, Tensor) else list(out)


def _part(own: Tensor, expected: Tensor) -> float:
    if own.shape != expected.shape:
        raise InputError(f"out: the file returns {tuple(own.shape)} where the model returns {tuple(expected.shape)}")
    spread = expected.max() - expected.min()
    if expected[0].numel() == 1:  # one number has no range
        spread = torch.maximum(spread, expected.abs().max())
    return float((own - expected).abs().max() / spread.clamp(min=torch.finfo(expected.dtype).tiny))
