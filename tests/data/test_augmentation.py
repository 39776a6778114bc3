"""Every augmentation runs on any image, under any Pillow, and an unknown one is refused."""

import importlib.resources
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.data.auto_augment import AugmentOp, RandAugment

from softmaxfree.data import ImageFolderDataModule
from softmaxfree.data.augmentation import _posterize
from softmaxfree.errors import InputError

STRINGS = (
    "rand-m9-mstd0.5-inc1", "rand-m10-mstd2", "rand-m10-inc1", "rand-m15-mmax20-inc1", "rand-m9-mstd101-n3-p1",
    "rand-mstd1-tweights", "rand-m10-mstd2-inc1-t3a", "rand-m10-mstd2-inc1-t3aw", "rand", "original-mstd0.5",
    "original",    "originalr-mstd5", "v0-mstd5", "v0r", "3a", "augmix-m5", "augmix-m10-mstd2-w2-d4-b1", None, "",
)  # fmt: skip
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8))


def run(data, times):
    """Augment some images many times; every result is a finite tensor of the size asked for."""
    transform = data._transform("train")
    mode = "RGB" if data.data_config["input_size"][0] == 3 else "L"
    images = [image.convert(mode) for image in (NOISE, NOISE.resize((40, 1)), Image.new("RGB", (9, 9)))]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  timm's own source of chance
    for i in range(times):
        out = transform(images[i % 3])
        assert tuple(out.shape) == data.data_config["input_size"]
        assert out.isfinite().all()


def read(path):
    """Class and arguments of a recipe's data, its bases' included."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = recipe.get("base")
    of_base = read(path.parent / (base if base.endswith(".yaml") else f"{base}.yaml")) if base else (None, {})
    return recipe.get("datamodule", of_base[0]), {**of_base[1], **recipe.get("data", {})}


def shipped():
    """The data arguments of the recipes for folders, each set of them once."""
    folder = Path(str(importlib.resources.files("softmaxfree") / "recipes"))
    found = [read(path) for path in sorted(folder.glob("*.yaml"))]
    sets = {yaml.safe_dump(data): data for name, data in found if name.endswith("ImageFolderDataModule")}
    return list(sets.values())


@pytest.mark.slow
def test_shipped_augmentations():
    assert shipped()
    for arguments in shipped():
        run(ImageFolderDataModule("nowhere", **{**arguments, "img_size": 24}), 4000)


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("in_chans", [3, 1])
def test_augmentations_by_name(name, in_chans):
    grey = {"in_chans": 1, "mean": [0.5], "std": [0.25]} if in_chans == 1 else {}
    run(ImageFolderDataModule("nowhere", img_size=24, auto_augment=name, **grey), 250)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_posterize_keeps_the_upper_bits(mode):
    """As timm with the Pillow of the papers: no bit is black."""
    image = NOISE.convert(mode)
    for bits in range(-4, 10):
        kept = np.asarray(_posterize(image, bits))
        assert kept.shape == np.asarray(image).shape
        assert np.array_equal(kept, np.asarray(image) & (0xFF << (8 - min(max(bits, 0), 8)) & 0xFF))


def test_the_released_recipe_keeps_its_meaning():
    """rand-m9-mstd0.5-inc1 is timm's: two of its fifteen operations, of which only posterize is ours."""
    transform = ImageFolderDataModule("nowhere", auto_augment="rand-m9-mstd0.5-inc1")._transform("train")
    (policy,) = [part for part in transform.transforms if isinstance(part, RandAugment)]
    assert policy.num_layers == 2
    assert len(policy.ops) == 15
    assert {(op.magnitude, op.magnitude_std, op.prob) for op in policy.ops} == {(9, 0.5, 0.5)}
    ours = [op.name for op in policy.ops if op.aug_fn is not AugmentOp(op.name).aug_fn]
    assert ours == ["PosterizeIncreasing"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"auto_augment": "rand-m9-foo"}, r"data.auto_augment: 'rand-m9-foo' has a part 'foo' that timm does not know"),
        ({"auto_augment": "rand-m9.5"}, r"a part 'm9.5'"),
        ({"auto_augment": "rand-inc"}, r"a part 'inc'"),
        ({"auto_augment": "rand-m9-t3b"}, r"a part 't3b'"),
        ({"auto_augment": "random-m9"}, r"a part 'random'"),
        ({"auto_augment": "original-m5"}, r"a part 'm5'"),
        ({"train_interpolation": "cubic"}, r"data.train_interpolation: 'cubic' is none of nearest, bilinear"),
        ({"interpolation": "random"}, r"data.interpolation: 'random' is none of"),
        ({"crop_pct": 0.0}, r"data.crop_pct must be above 0 and at most 1, got 0.0"),
        ({"scale": (1.0, 0.5)}, r"data.scale needs two positive numbers in order"),
        ({"hflip": 1.5}, r"data.hflip must be a probability"),
        ({"img_size": 0}, r"data.img_size must be 1 or more"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(InputError, match=message):
        ImageFolderDataModule("nowhere", **arguments)


def test_validation_is_not_augmented():
    transform = ImageFolderDataModule("nowhere", img_size=24)._transform("val")
    assert torch.equal(transform(NOISE), transform(NOISE))
