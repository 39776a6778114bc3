"""The images and bags on which a model is most wrong, as pictures and numbers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from softmaxfree.data.images import ReadableImages
from softmaxfree.report.judges import Judged, judge_classified, judge_detected, judge_segmented
from softmaxfree.tasks import ClassificationTask, SegmentationTask

__all__ = ["Mistakes", "list_mistakes", "look_for_mistakes"]

_SECONDS = 60.0  # after which no further image is looked at
_BATCH = 32
_LISTED = 12


@dataclass
class Mistakes:
    """What was found.

    Attributes:
        looked_at: number of images.
        of: number of validation images that can be read; None where it is not known.
        wrong: how many of those looked at have a mistake.
        splits: of what they are.
        items: the worst, the very worst first: numbers and names.
        pictures: of each item, by what they show.
    """

    looked_at: int = 0
    of: int | None = None
    wrong: int = 0
    splits: tuple[str, ...] = ("val",)
    items: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Image.Image]] = field(default_factory=list)


def look_for_mistakes(task: Any, data: Any, device: torch.device) -> Mistakes:
    """Look at validation images, drawn by chance where they are many, and keep the worst.

    Args:
        task: of classification, segmentation or detection; it is moved to the device.
        data: its data module, set up.
        device: where to compute.

    Returns:
        The worst, and how many were looked at: at most 2,000 of a classifier, 200 of another, and for a minute.
    """
    task = task.to(device).eval()
    judge: Any  # by the batches of the task
    if isinstance(task, ClassificationTask):
        judge, most, batch_size, shown = judge_classified, 2000, _BATCH, _LISTED
    else:
        judge = judge_segmented if isinstance(task, SegmentationTask) else judge_detected
        most, batch_size, shown = 200, 1, 6
    class_names = getattr(data, "class_names", ()) or tuple(map(str, range(task.hparams["num_classes"])))
    config = getattr(data, "data_config", {})
    loader = data.val_dataloader()
    found = Mistakes(of=None if isinstance(loader.dataset, IterableDataset) else len(loader.dataset))
    worst: list[tuple[str, Judged]] = []
    end = time.monotonic() + _SECONDS
    for names, batch in _batches(data, loader, most, batch_size):
        with torch.inference_mode():
            judged = judge(task, batch, class_names, config)
        for name, one in zip(names, judged, strict=True):
            found.looked_at += 1
            found.wrong += one.badness > 0
            worst.append((name, one))
        worst = [entry for entry in worst if entry[1].badness > 0]
        worst = sorted(worst, key=lambda entry: entry[1].badness, reverse=True)[:shown]
        if time.monotonic() > end:
            break
    if found.of is not None and isinstance(loader.dataset, ReadableImages):
        found.of -= len(loader.dataset.unreadable())
    found.items = [{"file": name, **one.numbers} for name, one in worst]
    found.pictures = [one.paint() for _, one in worst]
    return found


def list_mistakes(task: Any, data: Any) -> Mistakes:
    """List the worst of what a task of bags has measured already: no bag is read again, and none is painted.

    Args:
        task: of bags, after a validation or a test.
        data: its data module.

    Returns:
        The worst of all splits together; nothing of a task without classes.
    """
    found = Mistakes(of=0, splits=tuple(task.predicted))
    if not hasattr(task, "confusion"):
        return found
    for split, kept in task.predicted.items():
        probabilities = task.probabilities_of(kept.outputs)
        highest, likeliest = (values.tolist() for values in probabilities.max(1))
        labels, numbers, sizes = kept.labels.tolist(), kept.numbers.tolist(), kept.lengths.tolist()
        found.looked_at += len(labels)
        for i, label in enumerate(labels):
            if likeliest[i] != label:
                item = {"file": data.bags[split].filename(numbers[i]), "split": split, "instances": sizes[i]}
                item |= {"true": label, "predicted": likeliest[i]}
                item |= {"probability": highest[i], "true_probability": float(probabilities[i, label])}
                found.items.append(item)
    found.of, found.wrong = found.looked_at, len(found.items)
    found.items = sorted(found.items, key=lambda item: item["probability"], reverse=True)[:_LISTED]
    found.pictures = [{} for _ in found.items]
    return found


class _Numbered(Dataset):
    """Samples with their numbers, None for what cannot be read."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]


def _batches(data: Any, loader: DataLoader, most: int, batch_size: int) -> Iterator[tuple[list[str], Any]]:
    """Names of images, and the batch of them."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        count = 0
        for batch in loader:
            size = 0 if batch is None else len(batch[0])
            if size:
                yield [f"image {count + i + 1}" for i in range(size)], batch
            count += size
            if count >= most:
                return
        return
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:most].tolist()
    samples = DataLoader(
        Subset(_Numbered(dataset), chosen),
        batch_size,
        num_workers=loader.num_workers,
        collate_fn=_readable,
    )
    for numbered in samples:
        if numbered:
            batch = loader.collate_fn([sample for _, sample in numbered])
            yield [_name(dataset, index, data) for index, _ in numbered], batch


def _readable(samples: list) -> list:
    return [(index, sample) for index, sample in samples if sample is not None]


def _name(dataset: Any, index: int, data: Any) -> str:
    """The file of an image, below the folder of the data."""
    filename = getattr(getattr(dataset, "dataset", dataset), "filename", None)
    name = str((filename and filename(index, absolute=True)) or f"image {index + 1}")
    root = f"{getattr(data, 'root', '')}/"
    return name.removeprefix(root) if len(root) > 1 else name
