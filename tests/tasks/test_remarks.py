"""What a validation says of all its predictions: scores of the classes, and a run that has learnt nothing."""

import pytest
import torch

from tests.tasks import test_detection, test_segmentation
from tests.tasks.test_classification import Squares, fit, task


def remarks(caplog):
    return [r.message for r in caplog.records if r.name.startswith("softmaxfree")]


def test_scores_of_each_class():
    data, module = Squares(num_images=8), task()
    predicted = torch.tensor([0, 0, 2, 1, 0, 1, 2, 1])  # labels are 0, 1, 2, 3, 0, 1, 2, 3
    module.forward = lambda images: torch.nn.functional.one_hot(predicted, 4).float()
    fit(module, data, limit_train_batches=0, max_epochs=1).validate(module, data, verbose=False)
    scores = {name: values.tolist() for name, values in module.class_scores.items()}
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert scores["precision"] == [pytest.approx(2 / 3), pytest.approx(1 / 3), 1, nan]
    assert scores["recall"] == [1, 0.5, 1, 0]
    assert scores["F1"] == [pytest.approx(0.8), pytest.approx(0.4), 1, 0]
    assert module.remark == ""


class Named(Squares):
    class_names = ("north", "east", "south", "west")


def test_one_class_for_all_is_kept_for_the_end(caplog):
    module = task(lr=0.0, min_lr=0.0, warmup_lr=0.0, warmup_epochs=0)
    with torch.no_grad():
        module.model.head.bias.copy_(torch.tensor([0.0, 0, 100, 0]))
    fit(module, Named(), max_epochs=3)
    assert remarks(caplog) == []  # the command tells it last
    assert module.remark.startswith(
        "every image of the validation is given one class, 'south', which 25.0 % of them are: "
        "try more epochs (trainer.max_epochs is 3), another model.lr (it is 0)"
    )


def test_a_data_set_of_one_class_is_no_remark():
    data, module = Squares(num_images=8), task(warmup_epochs=0)
    data.dataset.tensors[1].fill_(1)
    with torch.no_grad():
        module.model.head.bias.copy_(torch.tensor([0.0, 100, 0, 0]))
    fit(module, data, limit_train_batches=0).validate(module, data, verbose=False)
    assert module.remark == ""


def test_every_pixel_of_one_class(caplog):
    module = test_segmentation.task()
    module.model = test_segmentation.Echo(3)
    image, label = torch.ones(3, 4, 4), torch.ones(4, 4, dtype=torch.long)
    label[0] = 2
    test_segmentation.validated(module, [([image], [label])])
    assert remarks(caplog) == [module.remark]
    assert module.remark.startswith("every pixel of the validation is given one class, '1', which 75.0 %")


def test_nothing_found(caplog):
    data, module = test_detection.Squares(num_images=2), test_detection.task()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    test_detection.measure(module, data, [nothing, nothing])
    assert remarks(caplog) == [module.remark]
    assert module.remark.startswith("nothing is found in any image of the validation: try more epochs")
    test_detection.measure(module, data, [nothing, test_detection._exact(data.samples[0])])
    assert module.remark == ""
