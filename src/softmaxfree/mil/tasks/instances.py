"""Predictions of the instances of a bag, where the data has labels of these."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from softmaxfree.mil.data.bag import BagBatch
from softmaxfree.mil.maps import contributions
from softmaxfree.mil.pooling import InstanceMax
from softmaxfree.mil.tasks.scores import instance_auc

__all__ = ["InstanceScores", "instance_scores"]

_MOST = 2_000_000  # instances that are kept: more make the area under the curve no surer


def instance_scores(model: nn.Module, batch: BagBatch) -> Tensor:
    """Return how much each instance speaks for the last class rather than the first: what it adds to their logits.

    A network that classifies each instance tells it by the instance's own logits.

    Args:
        model: a network of bags.
        batch: of bags.

    Returns:
        (B, N) float32; what stands in the padding has no meaning.
    """
    if isinstance(model, InstanceMax):
        logits = model.patch_logits(model.embed(batch.features))
        return (logits[..., -1] - logits[..., 0]).float()
    scores = batch.features.new_zeros(batch.features.shape[:2], dtype=torch.float32)
    lengths = [scores.shape[1]] * len(scores) if batch.mask is None else batch.mask.sum(1).tolist()
    for i, length in enumerate(lengths):
        coords = None if batch.coords is None else batch.coords[i, :length]
        step = {} if batch.step is None else {"step": float(batch.step[i])}
        parts = contributions(model, batch.features[i, :length], coords, **step).patches
        scores[i, :length] = parts[-1] - parts[0]
    return scores


class InstanceScores(Metric):
    """Keeps what a network says of instances that have labels, from all processes."""

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, model: nn.Module, batch: BagBatch) -> None:
        """Keep the instances of a batch that have labels."""
        labels = batch.instances
        if labels is None or sum(map(len, self.labels)) >= _MOST:  # nothing, but all processes have a tensor to gather
            labels = batch.features.new_full((1, 0), -1, dtype=torch.long)
            self.scores.append(batch.features.new_zeros(0, dtype=torch.float32))
        else:
            self.scores.append(instance_scores(model, batch)[labels >= 0])
        self.labels.append(labels[labels >= 0])

    def compute(self) -> dict[str, float]:
        """Return `instance_auc`; nothing where no instance has a label."""
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        return {"instance_auc": instance_auc([scores], [labels])} if len(labels) else {}
