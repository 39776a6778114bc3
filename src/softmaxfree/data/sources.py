"""Data sets that timm opens by name: torchvision's, those of the Hugging Face hub, WebDataset, TFDS."""

from collections import Counter
from functools import partial
from typing import Any, Literal

from timm.data import create_dataset

from softmaxfree.errors import InputError
from softmaxfree.images import read_image

__all__ = ["class_counts", "class_names", "open_source", "tell"]

_STREAMS = ("wds/", "hfids/")


def open_source(
    source: str,
    root: str | None,
    split: str,
    training: bool,
    batch_size: int,
    seed: int,
    mode: Literal["RGB", "L"],
    max_pixels: int | None,
    source_args: dict[str, Any],
) -> Any:
    """Open a split.

    Args:
        source: its name for `timm.data.create_dataset`.
        root: folder.
        split: the source's name of the split.
        training: whether the split is trained on.
        batch_size: images a process and step.
        seed: of a stream's order.
        mode: "RGB" or "L".
        max_pixels: height times width from which an image is refused.
        source_args: further arguments of `create_dataset`.

    Returns:
        A data set of timm or torchvision.

    Raises:
        InputError: a package, the data set or the split is not there.
    """
    streamed = source.lower().startswith(_STREAMS)
    try:
        dataset: Any = create_dataset(
            source,
            root=root,
            split=split,
            search_split=True,
            is_training=training,
            batch_size=batch_size,
            seed=seed,
            input_img_mode="" if streamed else mode,  # the module converts what is streamed
            **source_args,
        )
    except (RuntimeError, AssertionError) as error:  # timm's for "nothing there"
        raise InputError(f"data.root: no images in {root}: {error}") from error
    if hasattr(dataset, "loader"):  # torchvision's data sets of files
        dataset.loader = partial(read_image, mode=mode, max_pixels=max_pixels)
    return dataset


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels; empty where the source does not tell."""
    reader = getattr(dataset, "reader", dataset)
    classes = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return tuple(str(name) for name in sorted(classes, key=classes.__getitem__))


def class_counts(dataset: Any, num_classes: int) -> tuple[int, ...]:
    """Return the images of each class; empty where the source does not tell without reading them."""
    reader = getattr(dataset, "reader", None)
    if hasattr(dataset, "targets"):
        labels = dataset.targets
    elif hasattr(reader, "iter_targets"):
        labels = reader.iter_targets()
    else:
        return ()
    counts = Counter(int(label) for label in labels)
    return tuple(counts[label] for label in range(num_classes))


def tell(source: str, datasets: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return in one line what was found."""
    counts = [f"{len(data)} to {name}" for name, data in _counted(datasets)]
    classes = f"{len(names)} classes" if names else "classes that it does not name"
    return f"{source}: images of {classes}{': ' if counts else ''}{', '.join(counts)}"


def _counted(datasets: dict[str, Any]) -> list[tuple[str, Any]]:
    verbs = {"train": "train", "val": "validate"}
    return [(verbs[split], data) for split, data in datasets.items() if hasattr(data, "__len__") and len(data)]
