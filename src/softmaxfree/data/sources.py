"""Data sets that timm opens by name: torchvision's, those of the Hugging Face hub, WebDataset, TFDS."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from timm.data import create_dataset
from torch.utils.data import IterableDataset

from softmaxfree.errors import InputError
from softmaxfree.images import natural_key, read_image

__all__ = ["class_counts", "class_names", "open_splits", "tell"]

_STREAMS = ("wds/", "hfids/", "tfds/")


def open_splits(
    source: str,
    root: str | None,
    splits: dict[str, str],
    seed: int,
    mode: Literal["RGB", "L"],
    max_pixels: int | None,
    source_args: dict[str, Any],
) -> dict[str, Any]:
    """Open the training and the validation split.

    Labels that are words are numbered in their natural order, as those of the training split.

    Args:
        source: its name for `timm.data.create_dataset`.
        root: folder.
        splits: the source's names of the splits "train" and "val".
        seed: of a stream's order.
        mode: "RGB" or "L".
        max_pixels: height times width from which an image is refused.
        source_args: further arguments of `create_dataset`.

    Returns:
        Data sets of timm or torchvision by split.

    Raises:
        InputError: a package, the data set, a split or a column of it is not there, or the classes differ.
    """
    streamed = source.lower().startswith(_STREAMS)
    fixed: dict[str, Any] = {
        "root": root,
        "search_split": True,
        "seed": seed,
        "input_img_mode": "" if streamed else mode,
    }
    datasets: dict[str, Any] = {}
    arguments = dict(source_args)
    for split, name in splits.items():
        try:
            with _no_talk_of_info():
                dataset: Any = create_dataset(source, split=name, is_training=split == "train", **fixed, **arguments)
                if split == "train" and (words := _words(dataset)):
                    arguments["class_map"] = {word: i for i, word in enumerate(words)}
                    dataset = create_dataset(source, split=name, is_training=True, **fixed, **arguments)
            _check(dataset)
        except InputError:
            raise
        except Exception as error:  # sources raise what they like
            reason = " ".join(str(error).split()) or "there are no images"
            kind = "" if isinstance(error, RuntimeError | AssertionError | ValueError) else f"{type(error).__name__}: "
            raise InputError(
                f"data.source: {source}, split {name!r} (data.{split}_split), cannot be opened in {root}: {kind}"
                f"{reason}"
            ) from error
        if hasattr(dataset, "loader"):  # torchvision's data sets of files
            dataset.loader = partial(read_image, mode=mode, max_pixels=max_pixels)
        datasets[split] = dataset
    names = {split: class_names(dataset) for split, dataset in datasets.items()}
    if names["train"] != names["val"]:
        raise InputError(
            f"data.source: the classes of its splits differ: {', '.join(names['train'])} in {splits['train']}, "
            f"{', '.join(names['val'])} in {splits['val']}"
        )
    return datasets


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels; empty where the source does not tell."""
    reader = getattr(dataset, "reader", dataset)
    classes = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return tuple(str(name) for name in sorted(classes, key=classes.__getitem__))


def class_counts(dataset: Any) -> tuple[int, ...]:
    """Return the images of each class; empty where the source does not tell without reading them."""
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(dataset, "targets"):
        labels = dataset.targets
    elif hasattr(reader, "iter_targets") and not isinstance(dataset, IterableDataset):
        labels = reader.iter_targets()
    else:
        return ()
    counts = Counter(int(label) for label in labels)
    return tuple(counts[label] for label in range(len(class_names(dataset))))


def tell(source: str, datasets: dict[str, Any]) -> str:
    """Return in one line what was found."""
    verbs = {"train": "train", "val": "validate"}
    counts = [f"{len(data)} to {verbs[split]}" for split, data in datasets.items() if hasattr(data, "__len__")]
    names = class_names(datasets["train"])
    classes = f"images of {len(names)} classes" if names else "images of classes that it does not name"
    return f"{source}: {classes}{': ' if counts else ''}{', '.join(counts)}"


@contextmanager
def _no_talk_of_info() -> Iterator[None]:
    """Without timm's warning that a WebDataset has no `info.json`, which none needs whose splits tell their length."""
    logger = logging.getLogger("timm.data.readers.reader_wds")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check(dataset: Any) -> None:
    """Refuse columns and files that are not there, which would be told late or never."""
    reader: Any = getattr(dataset, "reader", None)
    table: Any = getattr(reader, "dataset", None)
    shards = getattr(getattr(reader, "split_info", None), "filenames", None) or ()
    if hasattr(table, "__len__") and hasattr(table, "column_names"):
        item = table[0]
        for argument, key in (("input_key", reader.image_key), ("target_key", reader.label_key)):
            if item.get(key.split(",")[0]) is None:
                names = ", ".join(name for name, value in item.items() if value is not None)
                raise InputError(f"data.source_args.{argument}: there is no column {key!r}; there are {names}")
    if hasattr(reader, "shard_shuffle_size"):  # WebDataset, which passes over files that are not there
        local = [os.path.join(reader.root or "", shard) for shard in shards if ":" not in shard]
        if missing := [shard for shard in local if not os.path.isfile(shard)]:
            raise InputError(f"data.source: {len(missing)} of {len(shards)} shards are missing: {missing[0]}")


def _words(dataset: Any) -> list[str]:
    """The labels of a Hugging Face data set whose labels are words and not yet numbered."""
    reader: Any = getattr(dataset, "reader", None)
    table, key = getattr(reader, "dataset", None), getattr(reader, "label_key", None)
    if table is None or not hasattr(table, "unique") or class_names(dataset) or key not in table.column_names:
        return []
    if getattr(table.features[key], "dtype", "") not in ("string", "large_string"):
        return []
    return sorted(map(str, table.unique(key)), key=natural_key)
