"""Samples of a validation: truth above, prediction below, whatever the data holds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from softmaxfree.drawing import colour, overlay
from softmaxfree.report.draw import draw_samples

NAMES = ["background", "Straße", "tree"]


class Task:
    """Finds nothing, or the last class everywhere."""

    device = "cpu"

    def __init__(self, kind):
        self.kind = kind

    def eval(self):
        pass

    def __call__(self, images):
        if self.kind == "segmentation":
            return [torch.eye(3)[2][:, None, None].expand(3, *image.shape[1:]) for image in images]
        return [{key: value[:0] for key, value in boxes(scores=torch.ones(1)).items()} for _ in images]


def boxes(**more):
    return {"boxes": torch.tensor([[10.0, 10, 30, 20]]), "labels": torch.tensor([1]), **more}


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_truth_is_above_the_prediction(kind, tmp_path):
    images = [torch.rand(3, 90, 90), torch.rand(3, 45, 90), torch.rand(3, 90, 45)]
    labels = [torch.ones(image.shape[1] // 3, image.shape[2] // 3, dtype=torch.long) for image in images]
    truths = labels if kind == "segmentation" else [boxes() for _ in images]
    batches = [([], []), (images[:2], truths[:2]), (images[2:], truths[2:])]
    data = SimpleNamespace(class_names=NAMES, val_dataloader=lambda: batches)
    draw_samples(Task(kind), data, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    full = torch.ones(90, 90, dtype=torch.long) if kind == "segmentation" else boxes()
    first = np.asarray(overlay(images[0], full, NAMES, 4))
    rows = [y for y in range(len(picture) - 360) if (picture[y : y + 360, 6:366] == first).all()]
    assert len(rows) == 1
    assert rows[0] < len(picture) / 3
    for number, there in ((1, True), (2, kind == "segmentation")):  # in the legend
        assert (picture[-40:, :600] == colour(number)).all(-1).any() == there


def test_without_a_readable_image_there_is_no_picture(tmp_path):
    data = SimpleNamespace(class_names=NAMES, val_dataloader=lambda: [([], [])])
    draw_samples(Task("segmentation"), data, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
