import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from softmaxfree.data import ScenesDetectionDataModule, ScenesSegmentationDataModule
from softmaxfree.data.scenes_export import VERSION, export_scenes
from softmaxfree.data.scenes_render import _digits, _photos, render_scene

COUNTS = {"train": 8, "val": 3, "img_size": 96}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return export_scenes(tmp_path_factory.mktemp("scenes") / "root", train=8, val=3, img_size=96, seed=3)


def scenes(count=40, **arguments):
    return [render_scene(i, **{"img_size": 96, **arguments}) for i in range(count)]


def test_a_scene_depends_on_its_arguments_alone():
    first = render_scene(5, img_size=96)
    render_scene(6, img_size=96)
    again = render_scene(5, img_size=96)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    others = [
        render_scene(6, img_size=96),
        render_scene(5, img_size=96, seed=1),
        render_scene(5, img_size=96, split="val"),
    ]
    assert all(not np.array_equal(first.image, other.image) for other in others)


def test_what_is_on_the_scenes():
    many = scenes()
    counts = np.array([len(scene.labels) for scene in many])
    assert 0 < (counts == 0).sum() < 8
    assert counts.max() <= 10
    assert counts.mean() > 5
    assert set(np.concatenate([scene.labels for scene in many])) == set(range(10))
    heights = np.concatenate([scene.boxes[:, 3] - scene.boxes[:, 1] for scene in many]) / 96
    assert heights.min() < 0.2
    assert 0.25 < heights.max() < 0.35


def test_how_many_digits_can_be_told(tmp_path):
    few, many = (np.array([len(scene.labels) for scene in scenes(digits=digits)]) for digits in ((1, 2), (10, 20)))
    assert few.max() <= 2
    assert 10 < many.mean() < 20
    with pytest.raises(ValueError, match=r"digits must be two numbers, the smaller first, got \(5, 4\)"):
        render_scene(0, img_size=96, digits=(5, 4))
    root = export_scenes(tmp_path / "root", train=8, val=3, img_size=96, seed=3, train_digits=(12, 12))
    for split, arguments in (("train", {"digits": (12, 12)}), ("val", {})):
        content = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
        rendered = scenes(len(content["images"]), split=split, seed=3, **arguments)
        assert len(content["annotations"]) == sum(len(scene.labels) for scene in rendered)


def test_boxes_masks_and_labels_agree():
    for scene in scenes(12):
        assert scene.masks.sum(0).max(initial=0) <= 1  # what lies on top hides what is below
        assert scene.semantic.shape == (96, 96)
        for (x1, y1, x2, y2), mask, label in zip(scene.boxes.astype(int), scene.masks, scene.labels, strict=True):
            assert mask.any()
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
            assert mask[y1].any()
            assert mask[y2 - 1].any()
            assert mask[:, x1].any()
            assert mask[:, x2 - 1].any()
            assert (scene.semantic[mask] == label + 1).all()
        assert (scene.semantic > 0).sum() == scene.masks.sum()


def test_digits_stand_out_from_what_is_around_them():
    """Each digit has one colour, and most have another luminance than the ring of pixels around them."""
    contrasts = []
    for scene in scenes(20, img_size=256):
        luminance = scene.image @ np.array([0.299, 0.587, 0.114]) / 255
        for i, mask in enumerate(scene.masks):
            ring = np.zeros_like(mask)
            for axis in (0, 1):
                for shift in (-6, 6):
                    ring |= np.roll(mask, shift, axis)
            ring &= ~scene.masks.any(0)
            contrasts.append(abs(np.median(luminance[mask]) - np.mean(luminance[ring])))
            assert np.median(np.abs(luminance[mask] - np.median(luminance[mask]))) < 0.02, i
    assert np.quantile(contrasts, 0.2) > 0.2


def test_a_scene_is_the_same_at_any_resolution():
    small, odd, large = (render_scene(1, img_size=size) for size in (128, 201, 512))
    assert odd.image.shape == (201, 201, 3)
    for a, b in pairwise((small, odd, large)):
        assert np.array_equal(a.labels, b.labels)
        assert np.allclose(a.boxes / len(a.image), b.boxes / len(b.image), atol=0.02)
    shrunk = np.asarray(Image.fromarray(large.image).resize((128, 128), Image.Resampling.BOX), np.float64)
    assert np.abs(shrunk - small.image).mean() < 12


def test_the_splits_share_neither_photographs_nor_digits():
    for kind in (_photos, lambda split: _digits(split)[0]):
        train, val = ({image.tobytes() for image in kind(split)} for split in ("train", "val"))
        assert train
        assert val
        assert not train & val


def test_a_size_that_is_too_small():
    with pytest.raises(ValueError, match=r"img_size must be at least 64 pixels, got 32"):
        render_scene(0, img_size=32)


def test_the_export_is_the_scenes(root):
    """Both layouts, through the loaders of real data, give what was rendered."""
    detection = ScenesDetectionDataModule(str(root), **COUNTS, scenes_seed=3, with_masks=True, batch_size=3)
    segmentation = ScenesSegmentationDataModule(str(root), **COUNTS, scenes_seed=3, batch_size=3)
    for data in (detection, segmentation):
        data.prepare_data()
        data.setup("fit")
    assert detection.class_names == tuple("0123456789")
    assert segmentation.class_names == ("background", *"0123456789")
    assert detection.num_classes == 10
    assert segmentation.num_classes == 11
    images, targets = next(iter(detection.val_dataloader()))
    same_images, labels = next(iter(segmentation.val_dataloader()))
    for i in range(3):
        scene = render_scene(i, split="val", img_size=96, seed=3)
        assert torch.equal(images[i], same_images[i])
        assert np.abs(images[i].permute(1, 2, 0).numpy() * 255 - scene.image).mean() < 4  # JPEG
        assert targets[i]["boxes"].tolist() == scene.boxes.tolist()
        assert targets[i]["labels"].tolist() == scene.labels.tolist()
        assert torch.equal(targets[i]["masks"].bool(), torch.from_numpy(scene.masks))
        assert targets[i]["area"].tolist() == scene.masks.sum((1, 2)).tolist()
        assert torch.equal(labels[i], torch.from_numpy(scene.semantic).long())
    for batch in (next(iter(detection.train_dataloader())), next(iter(segmentation.train_dataloader()))):
        assert len(batch[0]) == len(batch[1]) == 3
        assert all(max(image.shape) <= 108 for image in batch[0])


def test_scenes_are_written_once(root):
    manifest = root / "scenes.json"
    before = manifest.stat().st_mtime_ns
    assert export_scenes(root, train=8, val=3, img_size=96, seed=3) == root
    assert manifest.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds .*'seed': 3.*, and not the scenes .*'seed': 4"):
        export_scenes(root, train=8, val=3, img_size=96, seed=4)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"holds other files, and not the scenes"):
        export_scenes(tmp_path, train=1, val=1, img_size=96)
    with pytest.raises(ValueError, match=r"at least 1 scene each, got 0 and 1"):
        export_scenes(tmp_path / "none", train=0, val=1)


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(index, **arguments):
        if index == 2:
            raise KeyboardInterrupt
        return render_scene(index, **arguments)

    monkeypatch.setattr("softmaxfree.data.scenes_export.render_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_scenes(tmp_path / "root", train=4, val=1, img_size=96)
    assert not list(tmp_path.iterdir())


def test_the_default_folder_names_its_scenes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = ScenesDetectionDataModule(train=2, val=1, img_size=96, scenes_seed=5)
    data.prepare_data()
    assert data.root == tmp_path / "softmaxfree" / f"scenes{VERSION}-2-1-96px-seed5-digits4to10"
    content = json.loads((data.root / "annotations" / "instances_train2017.json").read_text())
    assert len(content["images"]) == 2
    assert ScenesSegmentationDataModule(train=2, val=1, img_size=96, scenes_seed=5).root == data.root
