"""Predictions of the instances of a bag, where the data has labels of these."""

import torch
from torch import Tensor, nn

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


class InstanceScores:
    """Gathers what a network says of instances that have labels, in one process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.count = 0

    def update(self, model: nn.Module, batch: BagBatch) -> None:
        """Take the instances of a batch, if they have labels."""
        if batch.instances is None or self.count >= _MOST:
            return
        scores = instance_scores(model, batch)
        valid = batch.instances >= 0
        self.scores.append(scores[valid].cpu())
        self.labels.append(batch.instances[valid].cpu())
        self.count += int(valid.sum())

    def compute(self) -> dict[str, float]:
        """Return `instance_auc`; nothing where no instance has a label."""
        return {"instance_auc": instance_auc(self.scores, self.labels)} if self.scores else {}
