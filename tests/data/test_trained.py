"""Which files a run was trained on, and which of those that are measured are among them."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from softmaxfree.data import CocoDataModule, ImageFolderDataModule, MaskFolderDataModule
from softmaxfree.data.splits import EVERY
from softmaxfree.data.trained import measured_before, note_trained, read_trained, require_trained
from softmaxfree.errors import InputError

rng = np.random.default_rng(0)


def picture(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8) if values is None else values).save(path)


def masks(root):
    for i in range(10):
        picture(root / "images" / f"{i}.png")
        picture(root / "masks" / f"{i}.png", np.eye(40, dtype=np.uint8))
    return MaskFolderDataModule


def boxes(root):
    for i in range(10):
        picture(root / "images" / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 40} for i in range(10)]
    one = [{"id": i, "image_id": i, "category_id": i % 2, "bbox": [1, 1, 20, 20]} for i in range(10)]
    kinds = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    (root / "mine.json").write_text(json.dumps({"images": images, "annotations": one, "categories": kinds}))
    return CocoDataModule


def classes(root):
    for i in range(10):
        picture(root / "ab"[i % 2] / f"{i}.png")
    return ImageFolderDataModule


def tarred(root):
    classes(root / "inside")
    with tarfile.open(root / "all.tar", "w") as tar:
        tar.add(root / "inside", ".")
    return lambda place, **arguments: ImageFolderDataModule(f"{place}/all.tar", **arguments)


def ready(kind, root, stage="fit", **arguments):
    data = kind(str(root), **arguments)
    data.setup(stage)
    return data


@pytest.mark.parametrize("make", [masks, boxes, classes, tarred])
def test_images_of_the_training_are_counted_by_content(tmp_path, make):
    kind = make(tmp_path / "data")
    data = ready(kind, tmp_path / "data")
    assert note_trained(tmp_path, data, goes_on=False) == []
    require_trained(tmp_path, data)
    count = data.num_images["train"]
    assert count == len(read_trained(tmp_path)[0].files) < 10
    assert "none of the" in measured_before(tmp_path, data)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copy = ready(kind, tmp_path / "copy", "validate", split=EVERY)
    assert measured_before(tmp_path, copy).startswith(f"{count} of the 10 images measured were trained on, such as ")
    shutil.rmtree(tmp_path / "data")  # what is left is names and sizes
    assert measured_before(tmp_path, copy).startswith(f"{count} of the 10 images measured were trained on")


def test_parts_on_other_images_stay_noted(tmp_path):
    for name in ("one", "two"):
        classes(tmp_path / name)
    one, two = (ready(ImageFolderDataModule, tmp_path / name) for name in ("one", "two"))
    note_trained(tmp_path, one, goes_on=False)
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    moved = ready(ImageFolderDataModule, tmp_path / "moved")
    require_trained(tmp_path, moved)  # the same images elsewhere
    assert note_trained(tmp_path, moved, goes_on=True) == []
    with pytest.raises(InputError, match=r"finished, and its training images are others now, such as"):
        require_trained(tmp_path, two)
    assert "begun on other images, 8 of" in note_trained(tmp_path, two, goes_on=True)[0]
    assert [part.root for part in read_trained(tmp_path)] == [str(tmp_path / "moved"), str(tmp_path / "two")]
    assert note_trained(tmp_path, two, goes_on=False) == []  # a run that begins anew


@pytest.mark.parametrize("make", [masks, boxes, classes])
def test_images_that_the_first_weights_were_trained_on_are_told(tmp_path, make):
    kind, runs = make(tmp_path / "data"), [tmp_path / "runs" / str(i) for i in range(4)]
    for run in runs:
        (run / "best").mkdir(parents=True)
    first, second = (ready(kind, tmp_path / "data", seed=seed) for seed in (1, 2))
    note_trained(runs[0], first, goes_on=False)
    assert note_trained(runs[1], first, goes_on=False, start=str(runs[0])) == []  # the same split
    validated = second.listing("val").names
    seen = len(set(validated) & set(first.listing("train").names))
    assert seen > 0
    weights = runs[0] / "best" / "model.safetensors"
    weights.touch()
    (line,) = note_trained(runs[2], second, goes_on=False, start=str(weights))
    assert line.startswith(
        f"{seen} of the {len(validated)} images to validate were trained on by the run whose weights"
    )
    assert note_trained(runs[2], second, goes_on=True) == [line]
    assert measured_before(runs[2], second).startswith(
        f"{seen} of the {len(validated)} images measured were trained on"
    )
    assert note_trained(runs[3], second, goes_on=False, start=str(runs[2] / "best")) == [line]  # over two runs
    assert note_trained(runs[3], second, goes_on=False, start="resnet18") == []
    assert [part.start for part in read_trained(runs[2])] == [True, False]


def test_files_that_are_gone_or_were_overwritten_are_known_by_what_was_noted(tmp_path):
    classes(tmp_path / "data")
    data = ready(ImageFolderDataModule, tmp_path / "data")
    note_trained(tmp_path, data, goes_on=False)
    (gone, overwritten), root = data.listing("train").names[:2], tmp_path / "data"
    for folder in ("seen", "new"):
        for kind in "ab":
            (tmp_path / folder / kind).mkdir(parents=True)
    (root / gone).rename(tmp_path / "seen" / "a" / "another name.png")
    shutil.copy(root / overwritten, tmp_path / "seen" / "b" / "kept.png")
    picture(root / overwritten)
    shutil.copy(root / overwritten, tmp_path / "new" / "a")
    picture(tmp_path / "new" / "b" / "other.png")
    for folder, told in (("seen", "2 of the 2 images measured were"), ("new", "none of the 2 images measured was")):
        other = ready(ImageFolderDataModule, tmp_path / folder, "validate", split=EVERY)
        assert measured_before(tmp_path, other).startswith(f"{told} trained on")


def relabel(root, kind):
    """Change labels alone."""
    if kind is masks:
        for path in (root / "masks").iterdir():
            picture(path, 1 - np.eye(40, dtype=np.uint8))
        return
    path = root / ("table.csv" if kind is table else "mine.json")
    old, new = (",a\n", ",b\n") if kind is table else ('"bbox": [1, 1, 20', '"bbox": [1, 1, 9')
    lines = path.read_text()
    assert lines.count(old) > 2
    path.write_text(lines.replace(old, new, 2))


def table(root):
    classes(root)
    rows = [f"{path.parent.name}/{path.name},{path.parent.name}\n" for path in sorted(root.glob("*/*.png"))]
    (root / "table.csv").write_text("".join(["image,label\n", *rows]))
    return lambda place, **arguments: ImageFolderDataModule(place, train_csv=f"{place}/table.csv", **arguments)


@pytest.mark.parametrize("make", [masks, boxes, table])
def test_changed_labels_are_told(tmp_path, make):
    kind = make(tmp_path / "data")
    first = ready(kind, tmp_path / "data")
    note_trained(tmp_path, first, goes_on=False)
    (tmp_path / "split.csv").write_text(
        "file,split\n" + "".join(f"{file},{split}\n" for file, split in first.split_rows)
    )
    relabel(tmp_path / "data", make)
    changed = ready(kind, tmp_path / "data", split=str(tmp_path / "split.csv"))
    with pytest.raises(InputError, match=r"finished, and the labels of its training images were changed since"):
        require_trained(tmp_path, changed)
    (line,) = note_trained(tmp_path, changed, goes_on=True)
    assert "labels of the training images were changed since the run began" in line
    require_trained(tmp_path, changed)


def test_a_run_that_does_not_tell_is_no_error(tmp_path):
    classes(tmp_path / "data")
    data = ready(ImageFolderDataModule, tmp_path / "data")
    assert measured_before(tmp_path, data) == ""
    (tmp_path / "trained.json").write_text("[{")
    assert read_trained(tmp_path) == []
    require_trained(tmp_path, data)
