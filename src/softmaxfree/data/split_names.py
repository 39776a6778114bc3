"""How the splits of a data set are called, in lower case."""

__all__ = ["SIDES", "SPLIT_NAMES"]

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}

SIDES = {"train": SPLIT_NAMES["train"], "val": (*SPLIT_NAMES["val"], *SPLIT_NAMES["test"])}
"""The two sides of a training. Of folders the first is taken: a test split validates where there is no other."""
