"""How wrong a model is on each image of a batch."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import to_pil_image

from softmaxfree.drawing import overlay

__all__ = ["Judged", "judge_classified", "judge_detected", "judge_segmented"]

_SIDE_CLASSIFIED, _SIDE_DENSE = 320, 640  # of a picture, pixels; of a dense task a label is small beside an object
_LARGEST = 4  # times that a small image is magnified for it
_SCORE, _OVERLAP = 0.5, 0.5  # from which a detection counts, and is of an object


@dataclass(frozen=True)
class Judged:
    """One image.

    Attributes:
        badness: more is worse; 0 is without a mistake.
        numbers: what is wrong.
        paint: makes the pictures, by what they show.
    """

    badness: float
    numbers: dict[str, Any]
    paint: Callable[[], dict[str, Image.Image]]


def judge_classified(
    task: Any, batch: tuple[Tensor, Tensor], class_names: Sequence[str], config: dict[str, Any]
) -> list[Judged]:
    """Return the probability of the predicted class where that is wrong."""
    images, labels = batch
    probabilities = task.log_odds(images.to(task.device)).float().softmax(1).cpu()
    highest, predicted = probabilities.max(1)
    judged = []
    for image, label, p, c, all_p in zip(
        images, labels.tolist(), highest.tolist(), predicted.tolist(), probabilities, strict=True
    ):
        numbers = {"true": label, "predicted": c, "probability": p, "true_probability": all_p[label].item()}
        judged.append(Judged(p if c != label else 0, numbers, partial(_paint_classified, image, config)))
    return judged


def judge_segmented(
    task: Any, batch: tuple[list[Tensor], list[Tensor]], class_names: Sequence[str], config: dict[str, Any]
) -> list[Judged]:
    """Return which share of an image's pixels is wrong.

    Not the mean IoU, by which a few stray pixels of a class that is not there are as bad as an object that is missed.
    """
    judged = []
    classes, ignored = task.hparams["num_classes"], task.hparams["ignore_index"]
    images, labels = batch
    for image, truth, logits in zip(images, labels, task([image.to(task.device) for image in images]), strict=True):
        if logits.shape[1:] != truth.shape:
            logits = F.interpolate(logits[None], size=truth.shape, mode="bilinear")[0]
        predicted = logits.argmax(0).cpu()
        counted = truth != ignored
        pairs = torch.bincount(truth[counted] * classes + predicted[counted], minlength=classes**2)
        confusion = pairs.view(classes, classes).numpy()
        right, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
        iou = float((right[union > 0] / union[union > 0]).mean()) if counted.any() else 1.0
        there = torch.cat([truth[counted], predicted[counted]]).unique().tolist()
        numbers: dict[str, Any] = {
            "classes": there,
            "iou": iou,
            "accuracy": float(right.sum() / max(confusion.sum(), 1)),
            "pixels": int(counted.sum()),
        }
        paint = partial(_paint_dense, image, truth, predicted, class_names, with_image=True)
        judged.append(Judged(float((confusion.sum() - right.sum()) / max(confusion.sum(), 1)), numbers, paint))
    return judged


def judge_detected(
    task: Any, batch: tuple[list[Tensor], list[dict[str, Any]]], class_names: Sequence[str], config: dict[str, Any]
) -> list[Judged]:
    """Return how many objects of an image are missed, or detected where there is none."""
    judged = []
    images, targets = batch
    for image, truth, found in zip(images, targets, task([image.to(task.device) for image in images]), strict=True):
        found = {key: value[found["scores"] >= _SCORE].cpu() for key, value in found.items()}
        crowd = truth["iscrowd"].bool() if "iscrowd" in truth else torch.zeros(len(truth["labels"]), dtype=torch.bool)
        missed, false = _unmatched(found, truth, crowd)
        numbers = {
            "classes": torch.cat([truth["labels"], found["labels"]]).unique().tolist(),
            "objects": int((~crowd).sum()),
            "missed": _by_class(truth["labels"][missed]),
            "false": _by_class(found["labels"][false]),
        }
        drawn = {key: truth[key] for key in ("boxes", "labels", "masks") if key in truth}
        paint = partial(_paint_dense, image, drawn, found, class_names, with_image=False)
        judged.append(Judged(len(missed) + len(false), numbers, paint))
    return judged


def _unmatched(found: dict[str, Tensor], truth: dict[str, Any], crowd: Tensor) -> tuple[list[int], list[int]]:
    """Objects that no detection of their class overlaps, and detections of no object; the best score chooses first."""
    overlaps = box_iou(found["boxes"], truth["boxes"]) * (found["labels"][:, None] == truth["labels"])
    in_crowd = (overlaps[:, crowd] >= _OVERLAP).any(1)
    free = ~crowd
    false = []
    for i in found["scores"].argsort(descending=True).tolist():
        rest = overlaps[i] * free
        best = int(rest.argmax()) if len(rest) else -1
        if best >= 0 and rest[best] >= _OVERLAP:
            free[best] = False
        elif not in_crowd[i]:
            false.append(i)
    return free.nonzero().flatten().tolist(), false


def _by_class(labels: Tensor) -> list[list[int]]:
    """Class and count."""
    return [[label, count] for label, count in sorted(Counter(labels.tolist()).items())]


def _paint_classified(image: Tensor, config: dict[str, Any]) -> dict[str, Image.Image]:
    mean, std = (
        torch.tensor(config.get(key, default)).view(-1, 1, 1) for key, default in (("mean", [0.0]), ("std", [1.0]))
    )
    shown = to_pil_image((image.cpu().float() * std + mean).clamp(0, 1))
    return {"image": _fit(shown, _SIDE_CLASSIFIED)}


def _paint_dense(
    image: Tensor, truth: Any, found: Any, class_names: Sequence[str], with_image: bool
) -> dict[str, Image.Image]:
    shown = {"truth": truth, "prediction": found}
    scale = min(_LARGEST, _SIDE_DENSE / max(image.shape[1:]))
    nothing = image.new_zeros(image.shape[1:], dtype=torch.long)
    pictures = {"image": overlay(image, nothing, ["background"], scale)} if with_image else {}
    for name, what in shown.items():
        if isinstance(what, Tensor) and what.shape != image.shape[1:]:
            what = F.interpolate(what[None, None].float(), size=image.shape[1:], mode="nearest")[0, 0].long()
        pictures[name] = overlay(image, what, class_names, scale, "no objects")
    return pictures


def _fit(picture: Image.Image, side: int) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    return picture
