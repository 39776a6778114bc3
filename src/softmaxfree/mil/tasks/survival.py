"""Survival: the hazard in bins of time, by bags."""

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from softmaxfree.errors import InputError
from softmaxfree.mil.data.bag import BagBatch
from softmaxfree.mil.tasks.bag_task import AbstractBagTask

__all__ = ["BagSurvivalTask", "concordance", "hazard_loss", "risk_of"]


class BagSurvivalTask(AbstractBagTask):
    """Trains a network of bags on times of events, some of which were not seen (discrete hazard), and measures c-index.

    A logit is that of the hazard in a bin of time: of the probability that the event is in this bin, where it was in
    none before.

    Args:
        name: Name of the network: bag_encoder, transmil, gated_attention, instance_max, mean or max.
        num_classes: Number of bins of time, those of the data.
        in_dim: Number of features of a patch.
        model_args: Further arguments of the network, such as `embed_dim`; null for none.
        censored_weight: Weight of slides whose event was not seen in the training loss, 0 to 1.
        **kwargs: How to optimize, see `AbstractTask`.
    """

    monitor = "val/c_index"
    target = "survival"
    summary: ClassVar = {
        "val/c_index": ("c-index", 1, 4),
        "val/loss": ("validation loss", 1, 4),
        "test/c_index": ("test c-index", 1, 4),
    }
    measured: ClassVar[tuple[str, ...]] = ("c_index",)
    """Scores of a test."""

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_dim: int = 1024,
        model_args: dict[str, Any] | None = None,
        censored_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= censored_weight <= 1:
            raise InputError(f"model.censored_weight must be 0 to 1, got {censored_weight}")
        self.model: Any = self.make_model(name, num_classes, in_dim, model_args)
        self.start()
        self.val_loss = MeanMetric()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return `hazard_loss` of logits (B, num_classes) and labels (B, 3)."""
        return hazard_loss(logits, labels[:, 0].long(), labels[:, 1], self.hparams["censored_weight"])

    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Return the probability that the event is in each bin, (B, num_classes), by logits of the same shape.

        The last one holds all that is later, whatever the hazard there.
        """
        survived = F.pad(F.logsigmoid(-logits).cumsum(1), (1, 0))[:, :-1].exp()  # to the begin of each bin
        return torch.cat([survived[:, :-1] * logits[:, :-1].sigmoid(), survived[:, -1:]], 1)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch."""
        self.kept.reset()

    def validation_step(self, batch: BagBatch, batch_idx: int) -> None:
        """Measure a batch of bags."""
        logits = self(batch)
        self.val_loss.update(hazard_loss(logits, batch.labels[:, 0].long(), batch.labels[:, 1]), weight=len(logits))
        self.kept.update(logits, batch)
        self.log("val/loss", self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Compare the order of the risks with that of the times."""
        self._measure("val")

    def on_test_epoch_start(self) -> None:
        """Forget what was measured before."""
        self.kept.reset()

    def test_step(self, batch: BagBatch, batch_idx: int) -> None:
        """Measure a batch of bags."""
        self.kept.update(self(batch), batch)

    def on_test_epoch_end(self) -> None:
        """Compare the order of the risks with that of the times."""
        self._measure("test")

    def label_cells(self, labels: Tensor, outputs: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
        """Return time, whether the event was seen, and the risk that is predicted."""
        return {"time": float(labels[2]), "event": int(labels[1]), "risk": round(float(risk_of(outputs[None])), 6)}

    def _measure(self, split: str) -> None:
        found = self.predicted[split] = self.kept.predicted()
        self.log(f"{split}/c_index", concordance(risk_of(found.outputs), found.labels[:, 1].bool(), found.labels[:, 2]))


def hazard_loss(logits: Tensor, bins: Tensor, seen: Tensor, censored_weight: float = 1.0) -> Tensor:
    """Return the negative log-likelihood of a discrete hazard, mean over the bags (Zadeh & Schmid, 2021, eq. 4).

    With h = sigmoid(logits) and S(t) the product of 1 - h up to bin t, it is -log(h(t) S(t - 1)) of an event in bin t,
    and -log S(t) where none was seen to the end of it. Computed from logarithms, so it stays finite.

    Args:
        logits: (B, bins) float32.
        bins: (B,) int64.
        seen: (B,) 1 where the event was seen, else 0.
        censored_weight: weight of the others.

    Returns:
        A scalar.
    """
    stays = F.logsigmoid(-logits).cumsum(1)  # log S
    survived = stays.gather(1, bins[:, None]).squeeze(1)
    before = F.pad(stays, (1, 0)).gather(1, bins[:, None]).squeeze(1)
    event = before + F.logsigmoid(logits).gather(1, bins[:, None]).squeeze(1)
    return -torch.where(seen > 0, event, censored_weight * survived).mean()


def risk_of(logits: Tensor) -> Tensor:
    """Return a risk (B,), higher where the event is expected earlier: minus the sum of S over the bins."""
    return -F.logsigmoid(-logits).cumsum(1).exp().sum(1)


def concordance(risk: Tensor, seen: Tensor, times: Tensor) -> float:
    """Return Harrell's c-index, computed by torchsurv.

    Args:
        risk: (B,).
        seen: (B,) bool.
        times: (B,).

    Returns:
        From 0 to 1; nan where no two bags can be compared.
    """
    comparable = seen[:, None] & (times[:, None] < times)
    if not bool(comparable.any()):
        return float("nan")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of torch.jit, at its import
        from torchsurv.metrics.cindex import ConcordanceIndex
    return float(ConcordanceIndex()(risk.cpu(), seen.cpu(), times.cpu(), instate=False))
