import pytest
import torch
from torch.nn import functional as F

from softmaxfree.errors import InputError
from softmaxfree.tasks.weights import balanced
from tests.tasks.test_classification import Squares, fit, task


def test_balanced_weights():
    weights = balanced((400, 100, 0))
    assert weights[1] == pytest.approx(2 * weights[0])
    assert (400 * weights[0] + 100 * weights[1]) / 500 == pytest.approx(1)
    assert weights[2] == 1
    for wrong in ((), (0, 0), (3, -1), (1, float("nan"))):
        with pytest.raises(InputError, match=r"class_weights: balanced weights need a count"):
            balanced(wrong)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_weighted_and_the_metrics_are_not(mixed):
    weights = [0.5, 1.0, 2.0, 3.0]
    module = task(class_weights=weights, warmup_epochs=0, label_smoothing=0.0, mixup=1.0 if mixed else 0.0)
    module.log_loss = lambda *_: None
    images, labels = Squares().dataset.tensors
    labels = labels[torch.randperm(len(labels))]
    if mixed:
        module._mix = lambda images, labels: (images, F.one_hot(labels, 4).float())  # mixed with nothing
    module.eval()  # else batch norm sees the same images twice
    expected = F.cross_entropy(module(images), labels, torch.tensor(weights))
    torch.testing.assert_close(module.training_step((images, labels), 0), expected)
    data = Squares()
    metrics = fit(module, data, limit_train_batches=0, max_epochs=1).validate(module, data, verbose=False)[0]
    images, labels = data.dataset.tensors
    assert metrics["val/loss"] == pytest.approx(F.cross_entropy(module(images), labels).item(), rel=1e-5)


def test_a_mixed_target_has_the_weights_of_both_classes():
    module = task(class_weights=[1.0, 3.0, 1.0, 1.0], mixup=1.0)
    module.log_loss = lambda *_: None
    targets = torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 0.5, 0.5]])
    module._mix = lambda images, labels: (images, targets)
    logits = torch.randn(2, 4)
    module.forward = lambda images: logits
    log = -logits.log_softmax(1)
    weighted = 0.25 * log[0, 0] + 3 * 0.75 * log[0, 1] + 0.5 * log[1, 2] + 0.5 * log[1, 3]
    loss = module.training_step((torch.zeros(2, 1, 16, 16), torch.tensor([1, 2])), 0)
    torch.testing.assert_close(loss, weighted / (0.25 + 3 * 0.75 + 1))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0, 1.0, 1.0], [0.0] * 4, [1.0, float("inf"), 1.0, 1.0]])
def test_wrong_weights(weights):
    with pytest.raises(InputError, match=r"class_weights must"):
        task(class_weights=weights)
