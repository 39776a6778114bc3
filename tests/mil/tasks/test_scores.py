"""Scores equal those of other packages."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from softmaxfree.mil.tasks.scores import class_table, instance_auc, scores_of, size_table

LOGITS = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
LABELS = (LOGITS + torch.randn(60, 3, generator=torch.Generator().manual_seed(1))).argmax(1)


@pytest.mark.parametrize("weights", ["none", "quadratic"])
def test_scores_are_those_of_sklearn(weights):
    scores = scores_of(LOGITS, LABELS, weights)
    given = LOGITS.argmax(1)
    kappa = cohen_kappa_score(LABELS, given, weights=None if weights == "none" else weights)
    auc = roc_auc_score(LABELS, LOGITS.softmax(1), multi_class="ovr", average="macro")
    assert scores["auc"].item() == pytest.approx(auc, abs=1e-6)
    assert scores["balanced_accuracy"].item() == pytest.approx(balanced_accuracy_score(LABELS, given), abs=1e-6)
    assert scores["kappa"].item() == pytest.approx(kappa, abs=1e-6)
    assert class_table(LOGITS, LABELS)["AUC"].mean().item() == pytest.approx(auc, abs=1e-6)


def test_classes_that_are_not_there_do_not_count():
    two = LABELS != 2
    scores = scores_of(LOGITS[two], LABELS[two])
    each = [roc_auc_score(LABELS[two] == i, LOGITS[two].softmax(1)[:, i]) for i in (0, 1)]
    assert scores["auc"].item() == pytest.approx(np.mean(each), abs=1e-6)
    assert class_table(LOGITS[two], LABELS[two])["AUC"].isnan().tolist() == [False, False, True]
    one = scores_of(LOGITS[:5], torch.zeros(5, dtype=torch.long))
    assert one["auc"].isnan()


def test_sure_networks_keep_their_order():
    """Probabilities of these bags are all 1 in float32."""
    logits = torch.tensor([[0.0, 30.0], [0.0, 50.0], [0.0, 20.0], [0.0, 40.0]])
    assert scores_of(logits, torch.tensor([0, 1, 0, 1]))["auc"].item() == 1.0
    assert scores_of(logits, torch.tensor([1, 1, 0, 0]))["auc"].item() == 0.75


def test_by_size():
    sizes = torch.arange(60) % 3 * 10 + 10
    rows = size_table(LOGITS, LABELS, sizes)
    assert [(row["instances"], row["bags"]) for row in rows] == [("10", 20), ("20", 20), ("30", 20)]
    assert rows[1]["auc"] == pytest.approx(scores_of(LOGITS[1::3], LABELS[1::3])["auc"].item())
    rows = size_table(LOGITS, LABELS, torch.arange(60) * 100 + 1)
    assert [row["bags"] for row in rows] == [15] * 4
    assert rows[-1]["instances"] == "4,501 to 5,901"
    assert [row["bags"] for row in size_table(LOGITS[:25], LABELS[:25], torch.arange(25))] == [13, 12]
    assert size_table(LOGITS[:7], LABELS[:7], torch.arange(7)) == []  # a score of a bag or two tells nothing
    few = torch.tensor([5] * 15 + [7] * 4)
    assert [row["instances"] for row in size_table(LOGITS[:19], LABELS[:19], few)] == []


def test_instances_with_equal_scores():
    scores = [torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0.0, 1.0])]
    labels = [torch.tensor([0, 1, 1]), torch.tensor([0, -1])]
    assert instance_auc(scores, labels) == pytest.approx(roc_auc_score([0, 1, 1, 0], [0, 0, 3, 0]))
    assert math.isnan(instance_auc([torch.ones(3)], [torch.zeros(3, dtype=torch.long)]))
    assert math.isnan(instance_auc([], []))
