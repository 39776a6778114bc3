"""`softmaxfree compare`: mixers in one network, or the ablations of one mixer, in tables and on a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from softmaxfree.compare import Comparison, compare
from softmaxfree.compare.page import PAGE, write_page
from softmaxfree.errors import InputError
from softmaxfree.images import read_image
from softmaxfree_cli.stops import Stop

__all__ = ["run"]


def run(
    *,
    mixers: Sequence[str] = (),
    study: str | None = None,
    data: Sequence[str] = (),
    seeds: int = 3,
    first_seed: int = 42,
    tokens: Sequence[int] = (196, 784, 3136, 12_544, 50_176),
    sizes: Sequence[int] = (),
    options: Sequence[str] = (),
    budget_minutes: float | None = None,
    image: str | None = None,
    threads: int | None = None,
    out: str = "comparison",
) -> None:
    """Compare mixers in one network, or the ways of one mixer, by cost, error and accuracy.

    Without --data nothing is trained: time and memory over the number of tokens, size, error against the exact form,
    padding error and half precision are measured. With it, a network is trained for each mixer and seed, in the same
    way. OUT gets CSV tables and report.html. A comparison that was stopped goes on with the same command.

    Args:
        mixers: Mixers to compare, such as `soft softmax performer`; by default all.
        study: Ablation of one mixer, by default of soft: landmarks, sampling, newton, solver, normalize or kernel.
        data: What to train on: digits, solar_cells, scenes, or a folder of images in folders of classes.
        seeds: Number of trainings of each mixer, each with another seed.
        first_seed: Seed of the first training.
        tokens: Numbers of tokens at which time and memory are measured.
        sizes: Image sizes, in pixels, at which trained networks are validated again.
        options: Further settings of the trainings, such as `trainer.max_epochs=4`; the same for all of a folder.
        budget_minutes: Minutes after which nothing further is begun.
        image: Photograph on whose patches errors are measured; by default one that comes with scikit-learn.
        threads: Number of threads of the measurements; by default that of torch. Trainings have that of their recipe,
            or `--options run.threads=2`.
        out: Folder of tables, runs and page.

    Raises:
        InputError: there is no such mixer, study, data or option, or the folder holds another comparison.

    Examples:
        softmaxfree compare --mixers soft softmax mala --tokens 784 3136
        softmaxfree compare --data digits --seeds 3
        softmaxfree compare --data photos/ --mixers soft softmax --budget-minutes 60
        softmaxfree compare --study newton --data digits
    """
    if seeds < 1:
        raise InputError(f"seeds must be 1 or more, got {seeds}")
    for name, numbers in (("tokens", tokens), ("sizes", sizes)):
        if any(number < 1 for number in numbers):
            raise InputError(f"{name} must be 1 or more each, got {', '.join(map(str, numbers))}")
    if budget_minutes is not None and not budget_minutes > 0:
        raise InputError(f"budget_minutes must be above 0, got {budget_minutes}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be 1 or more, got {threads}")
    if threads is not None:
        torch.set_num_threads(threads)
    comparison = Comparison(
        mixers=mixers,
        study=study,
        data=data,
        seeds=range(first_seed, first_seed + seeds),
        tokens=tokens,
        sizes=sizes,
        options=dict(map(_option, options)),
        budget_minutes=budget_minutes,
    )
    folder = Path(out)
    try:
        for line in compare(comparison, folder, _photograph(image)):
            print(line, flush=True)
            write_page(folder)
    except Stop as stop:
        stop.add_note("the same command goes on")
        raise
    write_page(folder)
    print(f"report    {folder / PAGE}")


def _option(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or "." not in key:
        raise InputError(f"options must be of the form section.key=value, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"options: the value of {key} is not YAML, got {value!r}") from error


def _photograph(image: str | None) -> np.ndarray:
    if image is not None:
        return np.asarray(read_image(image))
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise InputError("image: scikit-learn, whose photograph is the default, is not installed; give one") from error
    return load_sample_image("china.jpg")
