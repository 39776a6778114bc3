"""Scores of bags: of all together, of each class, and by the size of the bags."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_auroc,
    multiclass_cohen_kappa,
    multiclass_confusion_matrix,
)
from torchmetrics.utilities import dim_zero_cat

from softmaxfree.mil.data.bag import BagBatch

__all__ = ["Kept", "Predicted", "class_table", "instance_auc", "macro_auc", "scores_of", "size_table"]

_GROUPS = 4  # of bags, by size, where there are more sizes
_FEW_SIZES = 8
_LEAST = 10  # bags of a group: scores of fewer tell nothing


class Predicted(NamedTuple):
    """What was predicted of the bags of a split, in the order of the split.

    Attributes:
        outputs: `(B, C)` float32 logits.
        labels: as in `BagBatch`.
        sizes: `(B,)` int64, by which the report sorts bags.
        lengths: `(B,)` int64, numbers of patches.
        numbers: `(B,)` int64, of the bags in their split.
    """

    outputs: Tensor
    labels: Tensor
    sizes: Tensor
    lengths: Tensor
    numbers: Tensor


class Kept(Metric):
    """Keeps what was predicted of each bag, from all processes."""

    full_state_update = False
    outputs: list[Tensor]
    labels: list[Tensor]
    sizes: list[Tensor]
    lengths: list[Tensor]
    numbers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in Predicted._fields:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, outputs: Tensor, batch: BagBatch) -> None:
        """Keep a batch, of which the outputs are (B, C)."""
        self.outputs.append(outputs.detach().float())
        self.labels.append(batch.labels)
        self.sizes.append(batch.sizes)
        bags, longest = batch.features.shape[:2]
        self.lengths.append(batch.sizes.new_full((bags,), longest) if batch.mask is None else batch.mask.sum(1))
        self.numbers.append(batch.numbers)

    def compute(self) -> Predicted:
        """Return what was kept of all bags."""
        order = dim_zero_cat(self.numbers).argsort(stable=True)
        return Predicted(*(dim_zero_cat(getattr(self, name))[order] for name in Predicted._fields))

    def predicted(self) -> Predicted:
        """Return `compute()`, also of one bag, whose dimension torchmetrics takes away."""
        return Predicted(*map(torch.atleast_1d, self.compute()))


def macro_auc(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the classes of the area under the ROC curve, one against the rest.

    Args:
        logits: (B, C).
        labels: (B,) int64.

    Returns:
        The mean over classes with bags both of them and of others, nan if there is none; and that of each class (C,),
        nan where it is not known.
    """
    classes = logits.shape[1]
    counts = torch.bincount(labels, minlength=classes)
    wide = logits.double()
    # log odds: a probability rounds to 1, and bags that differ would be equal
    others = [torch.cat([wide[:, :i], wide[:, i + 1 :]], 1).logsumexp(1) for i in range(classes)]
    ranks = torch.stack([_ranks(wide[:, i] - others[i]) for i in range(classes)], 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No (positive|negative) samples")  # which are nan here
        each = multiclass_auroc(ranks, labels, classes, average="none", thresholds=None).to(torch.float32)
    each = torch.where((counts > 0) & (counts < len(labels)), each, torch.nan)
    return each.nanmean(), each


def scores_of(logits: Tensor, labels: Tensor, kappa_weights: str = "none") -> dict[str, Tensor]:
    """Return the scores that studies of slides report.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        kappa_weights: "none", "linear" or "quadratic".

    Returns:
        `auc`, `balanced_accuracy`, `kappa` and `accuracy`, each a scalar; nan where nothing tells it.
    """
    classes = logits.shape[1]
    confusion = multiclass_confusion_matrix(logits, labels, classes)
    recall = confusion.diagonal() / confusion.sum(1)
    weights: Any = None if kappa_weights == "none" else kappa_weights
    return {
        "auc": macro_auc(logits, labels)[0],
        "balanced_accuracy": recall.nanmean(),
        "kappa": multiclass_cohen_kappa(logits, labels, classes, weights=weights),
        "accuracy": (logits.argmax(1) == labels).float().mean(),
    }


def class_table(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return AUC, precision, recall and F1 of each class, (C,); nan where there is nothing to count."""
    confusion = multiclass_confusion_matrix(logits, labels, logits.shape[1])
    right, there, given = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return {
        "AUC": macro_auc(logits, labels)[1],
        "precision": right / given,
        "recall": right / there,
        "F1": 2 * right / (there + given),
    }


def size_table(logits: Tensor, labels: Tensor, sizes: Tensor) -> list[dict[str, Any]]:
    """Return scores by the size of the bags: of each size where there are few, else of quarters.

    Without two groups of ten bags or more there are no rows.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        sizes: (B,) int64.

    Returns:
        Rows of `instances` (a size, or from and to), `bags`, `auc` and `accuracy`.
    """
    own, counts = sizes.unique(return_counts=True)
    if len(own) <= _FEW_SIZES and int(counts.min()) >= _LEAST:
        groups = [sizes == size for size in own]
    elif (parts := min(_GROUPS, len(sizes) // _LEAST)) > 1:
        cuts = torch.quantile(sizes.double(), torch.arange(1, parts, dtype=torch.double, device=sizes.device) / parts)
        number = torch.bucketize(sizes.double(), cuts)
        groups = [number == i for i in range(parts) if bool((number == i).any())]
    else:
        return []
    rows = []
    for group in groups:
        low, high = int(sizes[group].min()), int(sizes[group].max())
        rows.append(
            {
                "instances": f"{low:,}" if low == high else f"{low:,} to {high:,}",
                "bags": int(group.sum()),
                "auc": float(macro_auc(logits[group], labels[group])[0]),
                "accuracy": float((logits[group].argmax(1) == labels[group]).float().mean()),
            }
        )
    return rows


def instance_auc(scores: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """Return how well scores tell instances of label 1 or more from those of label 0, as the area under the ROC curve.

    Args:
        scores: (N,) of each bag.
        labels: (N,) int64 of each bag; -1 is not known, and does not count.

    Returns:
        From 0 to 1; nan where one kind is missing.
    """
    if not scores:
        return float("nan")
    all_scores, all_labels = torch.cat(list(scores)), torch.cat(list(labels))
    known = all_labels >= 0
    positive = (all_labels[known] > 0).long()
    if not 0 < int(positive.sum()) < len(positive):
        return float("nan")
    return float(binary_auroc(_ranks(all_scores[known]), positive, thresholds=None))


def _ranks(scores: Tensor) -> Tensor:
    """Returns what AUC is of: the places (N,) from 0 to below 1 in float64; equal scores stay equal."""
    places = scores.unique(return_inverse=True)[1].double()
    return places / (len(scores) + 1)
