"""The hazard loss and the c-index, against what they are defined as."""

import math

import pytest
import torch
from torch import nn

from softmaxfree.mil.data import Bag, collate
from softmaxfree.mil.tasks import BagSurvivalTask
from softmaxfree.mil.tasks.survival import concordance, hazard_loss, risk_of


def explicit(logits, bins, seen, weight=1.0):
    """-log of the probability of what was seen, bin by bin."""
    total = 0.0
    for row, t, event in zip(logits.double(), bins.tolist(), seen.tolist(), strict=True):
        h = row.sigmoid()
        survived = math.prod(1 - h[k].item() for k in range(t))
        likelihood = survived * h[t].item() if event else survived * (1 - h[t].item())
        total -= math.log(likelihood) * (1 if event else weight)
    return total / len(logits)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_loss_is_the_likelihood(weight):
    logits, bins, seen = torch.randn(8, 4), torch.arange(8) % 4, torch.tensor([1, 0, 0, 1, 1, 1, 0, 0])
    assert hazard_loss(logits, bins, seen, weight).item() == pytest.approx(
        explicit(logits, bins, seen, weight), rel=1e-5
    )


def test_loss_and_gradient_stay_finite():
    logits = torch.tensor([[90.0, -90.0], [-90.0, 90.0]], requires_grad=True)
    loss = hazard_loss(logits, torch.tensor([1, 0]), torch.tensor([1, 0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_earlier_events_have_a_higher_risk():
    logits = torch.tensor([[5.0, 0, 0], [-5.0, 5, 0], [-5.0, -5, 5], [-5.0, -5, -5]])
    risk = risk_of(logits)
    assert (risk.diff() < 0).all()
    times = torch.tensor([1.0, 2, 3, 4])
    assert concordance(risk, torch.tensor([True] * 4), times) == 1
    assert concordance(-risk, torch.tensor([True] * 4), times) == 0
    seen = torch.tensor([False, True, True, False])  # pairs: 2 before 3, 2 before 4, 3 before 4
    assert concordance(torch.tensor([0.0, 1, 2, 0]), seen, times) == pytest.approx(2 / 3)
    assert math.isnan(concordance(risk, torch.tensor([False] * 4), times))


def test_probabilities_of_bins_sum_to_one():
    task = BagSurvivalTask("mean", 4, 6, {"embed_dim": 8}, warmup_epochs=0)
    nn.init.normal_(task.model.head.weight, std=3)
    bags = [Bag(torch.randn(n, 6), torch.tensor([0.0, 1, 2]), None, None, None, n, 0) for n in (3, 5)]
    probabilities = task.probabilities(collate(bags))
    assert torch.allclose(probabilities.sum(1), torch.ones(2), atol=1e-6)
    hazard = task(collate(bags)).sigmoid()
    assert torch.allclose(probabilities[:, 1], (1 - hazard[:, 0]) * hazard[:, 1], atol=1e-6)
