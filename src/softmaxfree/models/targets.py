"""What a detector learns from: boxes, labels and masks of each image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softmaxfree.errors import InputError


def check_targets(
    images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None, num_classes: int, head: str, masks: bool
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Checks targets; values on another device than the CPU without waiting for it.

    Args:
        images: `(3, height, width)` each.
        targets: `boxes` `(n, 4)` float, `labels` `(n,)` int64 and perhaps `masks` `(n, height, width)` of each.
        num_classes: labels are below it.
        head: name of what needs the targets.
        masks: whether it needs masks.

    Returns:
        The targets, with labels that are classes; and `()` bool, on the device of the images, True where a value is
        wrong.

    Raises:
        InputError: one is missing or does not fit, or a value on the CPU is wrong.
    """
    needed = {"boxes", "labels"} | ({"masks"} if masks else set())
    if targets is None or len(targets) != len(images):
        raise InputError(f"targets: training needs one for each of the {len(images)} images")
    wrong = torch.zeros((), dtype=torch.bool, device=images[0].device)
    checked = []
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        if missing := sorted(needed - target.keys()):
            raise InputError(f"targets[{i}] has no {', '.join(missing)}, which {head} needs")
        _check_kinds(i, image, target, masks)
        boxes, labels = target["boxes"], target["labels"]
        if labels.device.type == boxes.device.type == "cpu":
            _check_values(i, boxes, labels, num_classes)
        else:
            bad_labels = ((labels < 0) | (labels >= num_classes)).any()
            bad_boxes = ~((boxes[:, 2:] > boxes[:, :2]) & boxes.isfinite().all(1, keepdim=True)).all()
            wrong = wrong | bad_labels.to(wrong.device) | bad_boxes.to(wrong.device)
            target = {**target, "labels": labels.clamp(0, num_classes - 1)}
        checked.append(target)
    return checked, wrong


def _check_kinds(i: int, image: Tensor, target: dict[str, Tensor], masks: bool) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise InputError(f"targets[{i}]: boxes must be float (n, 4), got {boxes.dtype} {tuple(boxes.shape)}")
    if labels.dtype != torch.int64 or labels.shape != boxes.shape[:1]:
        raise InputError(
            f"targets[{i}]: labels must be int64 ({len(boxes)},), one a box, got {labels.dtype} {tuple(labels.shape)}"
        )
    expected = (len(boxes), *image.shape[-2:])
    if masks and target["masks"].shape != expected:
        raise InputError(f"targets[{i}]: masks must be {expected}, got {tuple(target['masks'].shape)}")


def _check_values(i: int, boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    # lists: the values lie in the memory of the CPU, and no operator of torch is asked for them
    if any(not 0 <= label < num_classes for label in labels.tolist()):
        raise InputError(f"targets[{i}]: labels must be in 0..{num_classes - 1}, got {labels.tolist()}")
    for left, top, right, bottom in boxes.tolist():
        if not (-torch.inf < left < right < torch.inf and -torch.inf < top < bottom < torch.inf):
            raise InputError(
                f"targets[{i}]: boxes must be left, top, right, bottom of a positive width and height, "
                f"got {[left, top, right, bottom]}"
            )
