"""Predictions of the instances of a bag, where the data has labels of these."""

from typing import Any

from torch import Tensor, nn

from softmaxfree.mil.data.bag import BagBatch
from softmaxfree.mil.tasks.scores import instance_auc

__all__ = ["InstanceScores", "instance_scores"]

_MOST = 2_000_000  # instances that are kept: more make the area under the curve no surer


def instance_scores(model: nn.Module, batch: BagBatch) -> Tensor:
    """Return how much each instance speaks for the last class rather than the first.

    Args:
        model: a network of bags.
        batch: of bags.

    Returns:
        (B, N) float32; what stands in the padding has no meaning.
    """
    own: Any = model
    h = own.embed(batch.features)
    terms = own.patch_logits(h) if hasattr(own, "patch_logits") else own.terms(h, batch.mask)
    return (terms[..., -1] - terms[..., 0]).float()


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
        if batch.instances is None or self.count >= _MOST or not hasattr(model, "terms"):
            return
        scores = instance_scores(model, batch)
        valid = batch.instances >= 0
        self.scores.append(scores[valid].cpu())
        self.labels.append(batch.instances[valid].cpu())
        self.count += int(valid.sum())

    def compute(self) -> dict[str, float]:
        """Return `instance_auc`; nothing where no instance has a label."""
        return {"instance_auc": instance_auc(self.scores, self.labels)} if self.scores else {}
