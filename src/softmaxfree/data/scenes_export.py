"""Digit scenes written to disk in the layouts of COCO and of ADE20K, side by side under one root."""

import json
import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from softmaxfree.data.scenes_render import DIGITS, Scene, Split, render_scene
from softmaxfree.errors import InputError

__all__ = ["CLASS_NAMES", "export_scenes"]

CLASS_NAMES = ("background", *"0123456789")  # of the semantic labels

_MANIFEST = "scenes.json"
VERSION = 3  # of the look of the scenes; part of what a folder must agree with
_FOLDERS = {"train": ("train2017", "training"), "val": ("val2017", "validation")}  # of COCO and of ADE20K


def export_scenes(
    root: str | Path,
    *,
    train: int,
    val: int,
    img_size: int = 256,
    seed: int = 0,
    train_digits: tuple[int, int] = DIGITS,
) -> Path:
    """Write scenes once: what is there already, with the same arguments, is kept.

    Below `root` lie `train2017`, `val2017` and `annotations/instances_*.json`; and `images/{training,validation}`,
    `annotations/{training,validation}`, whose labels are 1 for the background and digit + 2, and
    `objectInfo150.txt` with the names of the classes. A folder that takes its name is whole.

    Args:
        root: folder to make.
        train: number of training scenes.
        val: number of validation scenes, on other photographs and with other digits.
        img_size: height and width in pixels.
        seed: of the set of scenes.
        train_digits: least and most digits of a training scene; validation scenes are always alike.

    Returns:
        The root.

    Raises:
        InputError: a count is below 1, or the folder holds something else.
    """
    if min(train, val) < 1:
        raise InputError(f"train and val need at least 1 scene each, got {train} and {val}")
    root = Path(root).expanduser()
    manifest = {
        "version": VERSION, "train": train, "val": val, "img_size": img_size, "seed": seed,
        "train_digits": list(train_digits),
    }  # fmt: skip
    if _is_there(root, manifest):
        return root
    rank_zero_info(f"rendering {train + val} digit scenes into {root}")
    root.parent.mkdir(parents=True, exist_ok=True)
    part = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        _export_split(part, "train", train, img_size=img_size, seed=seed, digits=train_digits)
        _export_split(part, "val", val, img_size=img_size, seed=seed)
        rows = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t\t\t\t{name}" for i, name in enumerate(CLASS_NAMES, 1))]
        (part / "objectInfo150.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (part / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        try:
            os.replace(part, root)
        except OSError:
            if not _is_there(root, manifest):  # another process may have been faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _is_there(root: Path, manifest: dict[str, Any]) -> bool:
    if not root.is_dir() or not any(root.iterdir()):
        return False
    file = root / _MANIFEST
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else "other files"
    if found != manifest:
        raise InputError(
            f"data.root: {root} holds {found}, and not the scenes {manifest}; name another folder; for data of your "
            "own take a recipe coco_* or ade20k_* as base"
        )
    return True


def _export_split(root: Path, split: Split, count: int, **arguments: Any) -> None:
    coco, ade = _FOLDERS[split]
    for folder in (coco, f"images/{ade}", f"annotations/{ade}"):
        (root / folder).mkdir(parents=True)
    side = arguments["img_size"]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = render_scene(index, split=split, **arguments)
        name = f"{index + 1:06d}"
        jpeg = BytesIO()
        Image.fromarray(scene.image).save(jpeg, "JPEG", quality=95)
        for folder in (coco, f"images/{ade}"):
            (root / folder / f"{name}.jpg").write_bytes(jpeg.getvalue())
        Image.fromarray(scene.semantic + 1).save(root / "annotations" / ade / f"{name}.png")
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": side, "width": side})
        annotations += _instances(scene, index + 1, len(annotations) + 1)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
    }
    (root / "annotations" / f"instances_{coco}.json").write_text(json.dumps(content), encoding="utf-8")


def _instances(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    from pycocotools import mask as coco_mask

    out = []
    for i, (box, mask, label) in enumerate(zip(scene.boxes.tolist(), scene.masks, scene.labels.tolist(), strict=True)):
        code = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        out.append(
            {
                "id": first_id + i,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(mask.shape), "counts": code["counts"].decode("ascii")},
            }
        )
    return out
