"""What may be wrong with the entries of a COCO `instances` file, each told in a few words with its remedy."""

import math
from pathlib import PurePath
from typing import Any, NamedTuple

__all__ = [
    "KnownIds",
    "annotation_problem",
    "category_problem",
    "image_problem",
    "is_id",
    "is_number",
    "is_zero_box",
    "repeated",
]

_LARGEST = 2**31  # of any number: larger ones are mistakes, and overflow
_BEYOND = 0.1  # of the image's longer side, that a box may reach beyond it


class KnownIds(NamedTuple):
    """What annotations may refer to.

    Attributes:
        images: position of each image, by id.
        categories: position of each category, by id.
        sizes: height and width of each image, by position.
    """

    images: dict[int, int]
    categories: dict[int, int]
    sizes: list[tuple[int, int]]


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; JSON's true and null are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def is_id(value: Any) -> bool:
    """Return whether a value is a whole number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53 and value == int(value)


def image_problem(entry: Any) -> str | None:
    """Return what is wrong with an entry of `images`; None if nothing is."""
    if not isinstance(entry, dict):
        return "is no object with id, file_name, height and width"
    if not is_id(entry.get("id")):
        return _not(entry, "id", "a whole number")
    name = entry.get("file_name")
    if not isinstance(name, str) or not name.strip():
        return _not(entry, "file_name", "the name of a file")
    if PurePath(name).is_absolute():
        return f"has the file_name {name!r}, which is absolute; write it relative to the folder of images"
    if ".." in PurePath(name).parts:
        return f"has the file_name {name!r}, which is outside the folder of images; write it relative to that"
    for key in ("height", "width"):
        value: Any = entry.get(key)
        if not (is_id(value) and is_number(value) and value >= 1):
            return _not(entry, key, "a whole number of pixels")
    return None


def category_problem(entry: Any) -> str | None:
    """Return what is wrong with an entry of `categories`; None if nothing is."""
    if not isinstance(entry, dict):
        return "is no object with id and name"
    if not is_id(entry.get("id")):
        return _not(entry, "id", "a whole number")
    if not isinstance(entry.get("name"), str) or not entry["name"].strip():
        return _not(entry, "name", "the name of the category")
    return None


def is_zero_box(entry: Any) -> bool:
    """Return whether an annotation's box has no width or no height, of which COCO itself has two."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) == 0


def annotation_problem(entry: Any, known: KnownIds, with_masks: bool) -> str | None:
    """Return what is wrong with an entry of `annotations`; None if nothing is.

    Args:
        entry: of the file.
        known: images and categories of the file.
        with_masks: whether it needs a mask.

    Returns:
        A few words that go on from "annotation 7 (image 3)".
    """
    if not isinstance(entry, dict):
        return "is no object"
    for key in ("id", "image_id", "category_id"):
        if not is_id(entry.get(key)):
            return _not(entry, key, "a whole number")
    for key, ids in (("image_id", known.images), ("category_id", known.categories)):
        if entry[key] not in ids:
            return f"is of {key.removesuffix('_id')} {entry[key]}, which the file does not list"
    crowd = entry.get("iscrowd", 0)
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
        return _not(entry, "iscrowd", "0 or 1")
    height, width = known.sizes[known.images[entry["image_id"]]]
    problem = _box_problem(entry, height, width)
    if problem is None and "area" in entry and not (is_number(entry["area"]) and entry["area"] >= 0):
        problem = _not(entry, "area", "a number of pixels, or leave it out")
    if problem is None and with_masks:
        problem = _mask_problem(entry.get("segmentation"), height, width)
    return problem or _apart(entry, height, width)


def repeated(entries: list[dict[str, Any]]) -> str:
    """Return in words how many annotations repeat others.

    Args:
        entries: good annotations.

    Returns:
        A few words; empty if none does.
    """
    parts = []
    for keys, what in (
        (("image_id", "category_id", "bbox"), "image, category and box of another"),
        (("id",), "the id of another"),
    ):
        known: set[tuple] = set()
        same = []
        for entry in entries:
            value = tuple(tuple(entry[key]) if key == "bbox" else entry[key] for key in keys)
            if value in known:
                same.append(entry)
            known.add(value)
        if same:
            first = f"annotation {same[0]['id']} (image {same[0]['image_id']})"
            parts.append(f"{len(same)} of {len(entries)} annotations have {what}, such as {first}")
    return "; ".join([*parts, "they are kept"]) if parts else ""


def _not(entry: dict[str, Any], key: str, allowed: str) -> str:
    return f"has the {key} {entry[key]!r}; write {allowed}" if key in entry else f"has no {key}; write {allowed}"


def _box_problem(entry: dict[str, Any], height: int, width: int) -> str | None:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return _not(entry, "bbox", "four numbers: left, top, width, height")
    left, top, wide, high = box
    if wide <= 0 or high <= 0:
        return f"has the box {box}, which has no width or no height"
    if left >= width or top >= height or left + wide <= 0 or top + high <= 0:
        return f"has the box {box}, which lies outside its image, {width} wide and {height} high"
    beyond = max(-left, -top, left + wide - width, top + high - height)
    if beyond > max(1, _BEYOND * max(width, height)):
        return (
            f"has the box {box}, which reaches {beyond:g} pixels beyond its image, {width} wide and {height} high; a "
            "box is left, top, width, height"
        )
    return None


def _apart(entry: dict[str, Any], height: int, width: int) -> str | None:
    """Whether box and polygons have nothing in common, as where one of the two was written in another order."""
    polygons = entry.get("segmentation")
    if not isinstance(polygons, list) or not polygons:
        return None
    if not all(isinstance(own, list) and len(own) >= 6 and len(own) % 2 == 0 and _are_numbers(own) for own in polygons):
        return None  # which matters with masks alone
    low = [min(min(own[i::2]) for own in polygons) for i in (0, 1)]
    high = [max(max(own[i::2]) for own in polygons) for i in (0, 1)]
    if min(high) <= 0 or low[0] >= width or low[1] >= height:  # beyond the image: told where masks are needed
        return None
    start, size = entry["bbox"][:2], entry["bbox"][2:]
    if all(low[i] - 1 <= start[i] + size[i] and start[i] <= high[i] + 1 for i in (0, 1)):  # tools round
        return None
    return (
        f"has the box {entry['bbox']}, but a mask from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}), which "
        "has nothing in common with it"
    )


def _mask_problem(mask: Any, height: int, width: int) -> str | None:
    if isinstance(mask, dict):
        return _run_length_problem(mask, height, width)
    if not isinstance(mask, list) or not mask:
        return "has a mask that is neither a run-length code nor polygons of at least 3 points"
    if all(map(is_number, mask)):
        return "has a mask that is one flat list of numbers; write a list of polygons, [[x, y, x, y, ...]]"
    for polygon in mask:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _are_numbers(polygon):
            return "has a mask that is neither a run-length code nor polygons of at least 3 points"
        x, y = polygon[0::2], polygon[1::2]
        if min(x) >= width or min(y) >= height or max(x) <= 0 or max(y) <= 0:
            return f"has a polygon outside its image, {width} wide and {height} high"
        if max(x) > width + 1 or max(y) > height + 1 or min(x) < -1 or min(y) < -1:  # annotation tools round
            return (
                f"has a mask that reaches from ({min(x):g}, {min(y):g}) to ({max(x):g}, {max(y):g}), its image is "
                f"{width} wide and {height} high"
            )
    return None


def _are_numbers(values: list) -> bool:
    """Whether all are finite: with one look at each, as COCO has 50 million."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _run_length_problem(mask: dict[str, Any], height: int, width: int) -> str | None:
    if mask.get("size") != [height, width]:
        return f"has a mask of the size {mask.get('size')}, its image has {[height, width]}"
    counts = mask.get("counts")
    if isinstance(counts, str):
        counts = _run_lengths(counts)
    if not isinstance(counts, list) or not all(is_id(n) and n >= 0 for n in counts):
        return "has a mask whose counts are no run lengths"
    if sum(counts) != height * width:
        return f"has a mask whose run lengths sum up to {sum(counts)}, not to {height} x {width} = {height * width}"
    if not sum(counts[1::2]):
        return "has a mask that covers no pixel"
    return None


def _run_lengths(text: str) -> list[int] | None:
    """The run lengths of COCO's text: 5 bits a character, each beyond the third less the one two before.

    pycocotools reads any text, and past its end.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts if shift == 0 else None
