"""What the numbers of a report mean, in a sentence for who reads the first one."""

__all__ = ["meaning", "meaning_of_column"]

_METRICS = {
    "top1": "Part of the validation images whose most probable class is the right one.",
    "top5": "Part of the validation images whose right class is among the five most probable.",
    "loss": "How far the predicted probabilities are from the truth. Lower is better, 0 is perfect.",
    "miou": "Mean over the classes of the overlap of predicted and true area, divided by the area of both together.",
    "pixel_accuracy": "Part of the labelled pixels whose class is right. Large classes count most.",
    "balanced_accuracy": "Mean over the classes of the part that is recognised. Small classes count as much as large.",
    "auc": "Mean over the classes of how often one of a class is ranked above one of another. Chance is 0.5.",
    "kappa": "Cohen's kappa: agreement beyond that of chance, which is 0; 1 is perfect.",
    "instance_auc": "How often an instance that decides is ranked above one that does not. Chance is 0.5.",
    "c_index": "Part of the pairs in which the one whose event came first has the higher risk. Chance is 0.5.",
    "f1": "Mean over the classes of F1, which is high where a class is both recognised and not predicted wrongly.",
    "map": "COCO's main score: average precision, the mean over the classes and over overlaps from 50 to 95 %.",
    "map50": "Average precision where an object counts as found if prediction and truth overlap by half or more.",
    "map75": "Average precision where an object counts as found if prediction and truth overlap by three quarters.",
    "map_small": "Average precision of objects of less than 32 x 32 pixels.",
    "map_medium": "Average precision of objects from 32 x 32 to 96 x 96 pixels.",
    "map_large": "Average precision of objects of more than 96 x 96 pixels.",
}

_COLUMNS = {
    "auc": "how often one of this class is ranked above one of another; chance is 50 %",
    "precision": "how often the model is right when it says this class",
    "recall": "how much of what really is this class the model finds",
    "f1": "precision and recall in one number; it is low if one of them is low",
    "iou": "the area that prediction and truth share, divided by the area of both together; 100 % is a perfect match",
    "box ap": "average precision, which tells how well the boxes of the objects are found without false ones",
    "mask ap": "average precision, which tells how well the outlines of the objects are found without false ones",
}


def meaning(metric: str) -> str:
    """Return the sentence of a metric such as "val/top1"; empty for one that is not known here."""
    return _METRICS.get(metric.rpartition("/")[2].removeprefix("segm_"), "")


def meaning_of_column(score: str) -> str:
    """Return what a score of each class such as "IoU" is; empty for one that is not known here."""
    return _COLUMNS.get(score.lower(), "")
