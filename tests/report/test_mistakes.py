import pytest
import torch
from torch.utils.data import Dataset

from softmaxfree.data.images import AbstractImagesDataModule, ReadableImages, collate_readable
from softmaxfree.report.judges import judge_classified, judge_detected, judge_segmented
from softmaxfree.report.mistakes import look_for_mistakes
from softmaxfree.tasks import ClassificationTask

NAMES = ("cat", "dog", "eel")
CONFIG = {"mean": (0.5,), "std": (0.25,)}


def answering(answer, **hparams):
    """A task that gives this answer."""

    class Task:
        device = torch.device("cpu")

        def __call__(self, images):
            return answer

        log_odds = __call__

    task = Task()
    task.hparams = hparams
    return task


def test_a_classified_image_is_as_bad_as_its_wrong_class_is_probable():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.7, 0.2]]).log()
    images = torch.tensor([2.0, -2.0]).view(2, 1, 1, 1).expand(2, 1, 40, 60)
    right, wrong = judge_classified(answering(logits), (images, torch.tensor([0, 2])), NAMES, CONFIG)
    assert right.badness == 0
    assert wrong.badness == pytest.approx(0.7)
    assert wrong.numbers == pytest.approx({"true": 2, "predicted": 1, "probability": 0.7, "true_probability": 0.2})
    picture = right.paint()["image"]
    assert picture.size == (60, 40)
    assert picture.getextrema() == ((255, 255),) * 3  # 2.0 is the whitest value
    assert wrong.paint()["image"].getextrema() == ((0, 0),) * 3


def test_a_segmented_image_is_as_bad_as_pixels_are_wrong():
    truth = torch.zeros(40, 50, dtype=torch.long)
    truth[:, 25:] = 1
    truth[:10] = 255  # which counts nowhere
    predicted = torch.zeros(40, 50, dtype=torch.long)
    logits = torch.nn.functional.one_hot(predicted, 3).permute(2, 0, 1).float()
    task = answering([logits], num_classes=3, ignore_index=255)
    (judged,) = judge_segmented(task, ([torch.rand(3, 40, 50)], [truth]), NAMES, CONFIG)
    assert judged.numbers == {"classes": [0, 1], "iou": 0.25, "accuracy": 0.5, "pixels": 1500}  # 1/2 of cat, no dog
    assert judged.badness == 0.5  # of its pixels, not of its classes: a stray pixel is no missed object
    assert {name: picture.size for name, picture in judged.paint().items()} == dict.fromkeys(
        ("image", "truth", "prediction"), (200, 160)
    )


def boxes(*corners):
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def test_missed_objects_and_false_ones_are_counted():
    truth = {
        "boxes": boxes([0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 10], [0, 30, 40, 40]),
        "labels": torch.tensor([0, 1, 1, 2]),
        "iscrowd": torch.tensor([False, False, False, True]),
    }
    found = {
        "boxes": boxes(
            [0, 0, 10, 9],  # finds the cat
            [0, 0, 9, 10],  # finds it again
            [20, 20, 30, 30],  # the dog, taken for an eel
            [40, 0, 50, 10],  # the other dog, of too low a score
            [0, 30, 40, 39],  # in the crowd of eels
        ),
        "labels": torch.tensor([0, 0, 2, 1, 2]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.4, 0.6]),
    }
    task = answering([found])
    (judged,) = judge_detected(task, ([torch.rand(3, 40, 50)], [truth]), NAMES, CONFIG)
    assert judged.numbers == {"classes": [0, 1, 2], "objects": 3, "missed": [[1, 2]], "false": [[0, 1], [2, 1]]}
    assert judged.badness == 4
    assert set(judged.paint()) == {"truth", "prediction"}


def test_an_image_without_objects_and_detections_is_right():
    nothing = {"boxes": boxes(), "labels": torch.zeros(0, dtype=torch.long)}
    task = answering([nothing | {"scores": torch.zeros(0)}])
    (judged,) = judge_detected(task, ([torch.rand(3, 40, 50)], [nothing]), NAMES, CONFIG)
    assert judged.badness == 0
    one = {"boxes": boxes([0, 0, 9, 9]), "labels": torch.tensor([1])}
    (judged,) = judge_detected(task, ([torch.rand(3, 40, 50)], [one]), NAMES, CONFIG)
    assert judged.numbers == {"classes": [1], "objects": 1, "missed": [[1, 1]], "false": []}


class Photos(Dataset):
    """Grey photographs, of which some cannot be read."""

    def __len__(self):
        return 7

    def filename(self, index, absolute=True):
        return f"/photos/val/cat/{index}.jpg"

    def __getitem__(self, index):
        if index % 3 == 0:
            raise OSError("broken")
        return torch.full((1, 32, 32), index / 7), 0


class PhotoModule(AbstractImagesDataModule):
    data_config = CONFIG
    root = "/photos"
    class_names = ()

    def __init__(self):
        super().__init__(2, 0, "skip", 0, None, collate_readable)
        self._sets = {"val": ReadableImages(Photos(), lambda image: image)}


def test_unreadable_images_are_left_out_and_the_others_named_below_the_root():
    task = ClassificationTask("soft_nano", 3, model_args={"in_chans": 1})
    task.forward = lambda images: torch.tensor([[0.0, 5.0, 0.0]]).expand(len(images), 3)
    data = PhotoModule()
    found = look_for_mistakes(task, data, torch.device("cpu"))
    assert (found.looked_at, found.of, found.wrong) == (4, 4, 4)
    assert data.left_out_images == {"val": [f"/photos/val/cat/{i}.jpg: OSError: broken" for i in (0, 3, 6)]}
    assert sorted(item["file"] for item in found.items) == [f"val/cat/{i}.jpg" for i in (1, 2, 4, 5)]
