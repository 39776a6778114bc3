"""What somebody who reads a report should know before the numbers."""

from typing import Any

import numpy as np

from softmaxfree.printing import few
from softmaxfree.report.summary import Summary, readable_images

__all__ = ["confusion_counts", "counts_of", "findings", "unit_of"]

_NAMED = 5
_MOST = 0.5  # part of the images from which a class is given too often, if twice as often as there is reason to
_WEAK, _BEHIND = 0.5, 0.15  # a class is weak below half of the median, and by so much
_RISES = 0.005  # of a score, in the last tenth of the epochs, by a model that still learns
_FEW_IMAGES = 200  # of a validation, below which one image is half a percentage point


def findings(summary: Summary) -> list[str]:
    """Return what is worth a warning, the gravest first."""
    found = [
        _remark(summary) or _collapsed(summary),
        _unvalidated(summary),
        *_unreadable(summary),
        *(_sentence(remark) for remark in summary["data"]["remarks"]),
        _one_sided(summary),
        _no_better_than_guessing(summary),
        *_classes(summary),
        _untested(summary),
        _weak(summary),
    ]
    found += [_small_validation(summary), _ended_early(summary)]
    return [line for line in found if line]


def confusion_counts(summary: Summary) -> np.ndarray | None:
    """Return the confusion matrix (classes, classes), int64, rows are the true classes; None where there is none."""
    return counts_of(summary["confusion"])


def counts_of(confusion: dict[str, Any] | None) -> np.ndarray | None:
    """Return a confusion matrix as `confusion_counts` does, by its cells."""
    if confusion is None:
        return None
    counts = np.zeros((confusion["classes"],) * 2, np.int64)
    for i, j, count in confusion["cells"]:
        counts[i, j] = count
    return counts


def unit_of(summary: Summary) -> str:
    """Return what a sample is: "image", or such as "slide"."""
    return summary["data"].get("unit", "image")  # not in those of earlier versions


def _remark(summary: Summary) -> str:
    """What the task itself says, as a sentence."""
    remark = summary["remark"]
    return _sentence(f"{remark[0].upper()}{remark[1:]}") if remark else ""


def _sentence(remark: str) -> str:
    return f"{remark.removesuffix('.')}."


def _unreadable(summary: Summary) -> list[str]:
    """Images that were left out, those of the validation first."""
    found = []
    for split, name in (("val", "validation"), ("train", "training")):
        left_out = summary["data"]["left_out"].get(split) or {"images": 0, "first": []}
        if not (number := left_out["images"]):
            continue
        of = summary["data"]["num_images"].get(split)
        many = "images" if (of or number) != 1 else "image"
        told = "; ".join(left_out["first"][:_NAMED]) + ("; ..." if number > _NAMED else "")
        share = f"{number} of {of}" if of else str(number)
        found.append(_sentence(f"{share} {name} {many} cannot be read and {_was(number)} left out: {told}"))
    return found


def _collapsed(summary: Summary) -> str:
    counts = confusion_counts(summary)
    if counts is None or (counts.sum(1) > 0).sum() < 2 or (counts.sum(0) > 0).sum() != 1:
        return ""
    name, of = summary["data"]["class_names"][int(counts.sum(0).argmax())], summary["confusion"]["of"]
    return (
        f"The model gives one class, {name}, to every {of.removesuffix('s')} of the validation: it has learned nothing "
        f"from the {unit_of(summary)}s. A lower learning rate (model.lr), more epochs, weights to start from "
        "(--init-from) or model.class_weights auto may help."
    )


def _one_sided(summary: Summary) -> str:
    counts = confusion_counts(summary)
    if counts is None or summary["confusion"]["of"] == "pixels" or _collapsed(summary):
        return ""
    total = max(counts.sum(), 1)
    most = int(counts.sum(0).argmax())
    said, true = counts.sum(0)[most] / total, counts.sum(1)[most] / total
    if said < _MOST or said < 2 * true:
        return ""
    name = summary["data"]["class_names"][most]
    many = f"{unit_of(summary)}s"
    return f"The model gives one class, {name}, to {100 * said:.0f} % of the {many}, and {100 * true:.0f} % are of it."


def _unvalidated(summary: Summary) -> str:
    if summary["metrics"] or summary["missing"]:
        return ""
    return "There was no validation: nothing tells how good these weights are. What is kept are the last ones."


def _no_better_than_guessing(summary: Summary) -> str:
    counts, top1 = confusion_counts(summary), summary["metrics"].get("val/top1")
    if counts is None or top1 is None or _collapsed(summary):
        return ""
    largest = counts.sum(1).max() / max(counts.sum(), 1)
    if top1 > largest:
        return ""
    name = summary["data"]["class_names"][int(counts.sum(1).argmax())]
    return (
        f"Top-1 is {100 * top1:.1f} %. To answer {name} always, without a look at the image, gives "
        f"{100 * largest:.1f} %."
    )


def _classes(summary: Summary) -> list[str]:
    counts, names = confusion_counts(summary), summary["data"]["class_names"]
    if counts is None:
        of, unseen = "objects", []
        scores = list(zip(*summary["class_scores"].values(), strict=True))
        absent = [name for name, own in zip(names, scores, strict=False) if all(score is None for score in own)]
    else:
        of, there, given = summary["confusion"]["of"], counts.sum(1), counts.sum(0)
        absent = [name for name, total in zip(names, there, strict=True) if total == 0]
        unseen = [name for name, row, column in zip(names, there, given, strict=True) if row and not column]
    readable = f"{of} that can be read" if summary["data"]["left_out"].get("val", {}).get("images") else of
    return [
        f"{_number(absent)} without {readable} in the validation, so nothing is known of {_them(absent)}."
        if absent
        else "",
        f"{_number(unseen)} never predicted in the validation." if unseen and not _collapsed(summary) else "",
    ]


def _untested(summary: Summary) -> str:
    if not (tested := summary["tested"]):
        return ""
    counts, names = counts_of(tested["confusion"]), summary["data"]["class_names"]
    absent = [name for name, total in zip(names, counts.sum(1), strict=True) if total == 0]  # type: ignore[union-attr]
    if not absent:
        return ""
    of = tested["confusion"]["of"]
    return f"{_number(absent)} without {of} in the test, so its scores are of the other classes alone."


def _weak(summary: Summary) -> str:
    """Classes far below the others, by the score that tells how much of them is found."""
    scores, names = summary["class_scores"], summary["data"]["class_names"]
    column = next((name for name in ("recall", "IoU", "mask AP", "box AP") if name in scores), None)
    if column is None or _collapsed(summary):
        return ""
    known = [(score, name) for score, name in zip(scores[column], names, strict=False) if score is not None]
    if len(known) < 2:
        return ""
    weak = []
    for i, (score, name) in enumerate(known):
        middle = float(np.median([other for k, (other, _) in enumerate(known) if k != i]))
        if score < _WEAK * middle and score < middle - _BEHIND:
            weak.append((score, name, middle))
    if not weak:
        return ""
    weak.sort()
    shown = few([f"{name} {100 * score:.1f} %" for score, name, _ in weak], _NAMED)
    weighed, _ = summary["settings"].get("model.class_weights", (None, ""))  # or it is a detector, which has none
    weighs = ", or model.class_weights auto," if weighed is None and summary["task"] != "DetectionTask" else ""
    far = "1 class is" if len(weak) == 1 else f"{len(weak)} classes are"
    return (
        f"{far} far below the others in {column}: {shown}; half of the others have {100 * weak[0][2]:.1f} % or "
        f"more. More {unit_of(summary)}s of such a class{weighs} may help."
    )


def _small_validation(summary: Summary) -> str:
    counts = confusion_counts(summary)
    images = 0 if counts is None else int(counts.sum())  # those that were measured
    if summary["task"] != "ClassificationTask":
        return _small_dense_validation(summary)
    if not images or images >= _FEW_IMAGES or "val/top1" not in summary["metrics"]:
        return ""
    return (
        f"{images} validation images were measured: one of them is {100 / images:.1f} percentage points of top-1, and "
        "another choice of images may give a score that differs by several of these."
    )


def _small_dense_validation(summary: Summary) -> str:
    data, score = summary["data"], summary["labels"].get(summary["monitor"])
    images = readable_images(summary).get("val", 0)
    if not score or not summary["metrics"] or not 0 < images < _FEW_IMAGES:
        return ""
    boxes = data["num_boxes"].get("val")
    own = unit_of(summary)
    of, unit, total = (f"{boxes} boxes in ", "box", boxes) if boxes else ("", own, images)
    name, many = score[0].removesuffix(" (%)"), f"{own}s" if images > 1 else own
    return (
        f"The validation has {of}{images} {many}, one {unit} is {100 / total:.1f} % of them: another choice of {own}s "
        f"may give a {name} that differs by several percentage points."
    )


def _ended_early(summary: Summary) -> str:
    epochs = len(summary["epochs"])
    if epochs < 3 or summary["best_epoch"] != epochs:
        return ""
    before, last = (summary["epochs"][i].get(summary["monitor"]) for i in (-1 - max(1, epochs // 10), -1))
    if before is not None and last is not None and last - before < _RISES:
        return ""  # a rate that falls to its end makes the last epoch the best of many that are alike
    return (
        f"The best epoch is the last of {epochs}: the model was still learning, and more epochs may give a better one."
    )


def _number(names: list[Any]) -> str:
    shown = few(names, _NAMED)
    return f"1 class ({shown}) is" if len(names) == 1 else f"{len(names)} classes ({shown}) are"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _them(names: list[Any]) -> str:
    return "it" if len(names) == 1 else "them"
