"""Classes in tar files."""

import gzip
import tarfile

import pytest
import torch

from softmaxfree.errors import InputError
from tests.data.folders.small import CLASSES, into_tars, labels, module, write_images


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("folder", [".", "{}"])
def test_tar_files(root, folder, workers):
    plain = module(root)
    plain.setup("fit")
    wanted = torch.cat([images for images, _ in plain.val_dataloader()])
    into_tars(root, folder)
    data = module(root, num_workers=workers)
    data.setup("fit")
    assert data.class_names == CLASSES
    assert data._sets["val"][0] is not None  # an open file would be shared with the workers
    for _ in range(2):
        assert torch.equal(torch.cat([images for images, _ in data.val_dataloader()]), wanted)
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("around", ["", "photos/"])
def test_both_splits_in_a_tar(root, around):
    for name in ("0.jpg", "extra/0.jpg", "extra/1.jpg"):
        write_images((root / name).parent, 2)
    plain = module(root)
    plain.setup("fit")
    assert plain.found.endswith("; 12 to train, 6 to validate (in val); not used: extra, 2 .jpg")
    with tarfile.open(root / "all.tar", "w") as tar:
        for name in ("train", "val", "extra", "0.jpg", "1.jpg"):
            tar.add(root / name, arcname=around + name)
    data = module(root / "all.tar")
    data.setup("fit")
    assert data.found == plain.found.replace(str(root), str(root / "all.tar"))
    assert "18 images of 3 classes (6 each: cat, dog, owl)" in data.found
    assert torch.equal(*(torch.cat([images for images, _ in each.val_dataloader()]) for each in (data, plain)))
    assert data._sets["val"].dataset.filename(0) == str(root / "all.tar" / around / "val" / "cat" / "0.jpg")


def test_a_tar_with_one_split_or_one_folder(root):
    for name, message in (
        ("photos", r"of one class, photos; .* put them into .*one.tar itself, without photos$"),
        ("val", r"one.tar needs a folder train or training beside .*one.tar/val; it holds val$"),
    ):
        with tarfile.open(root / "one.tar", "w") as tar:
            tar.add(root / "val", arcname=name)
        with pytest.raises(InputError, match=message):
            module(root / "one.tar").setup("fit")
    into_tars(root, "{}")
    data = module(root / "train.tar")
    data.setup("fit")
    assert data.class_names == CLASSES
    assert data.split_rows[0][0] == "train/cat/0.jpg"


def test_tars_in_a_tar(root):
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for name in CLASSES:
                with tarfile.open(root / f"{name}.tar", "w") as inner:
                    inner.add(root / split / name, arcname=".")
                tar.add(root / f"{name}.tar", arcname=f"{name}.tar")
        (root / split).rename(root / f"away_{split}")
    data = module(root)
    data.setup("fit")
    assert data.class_names == CLASSES
    assert labels(data, data.val_dataloader()) == [0, 0, 1, 1, 2, 2]


def test_a_broken_tar(root):
    into_tars(root)
    whole = (root / "val.tar").read_bytes()
    for content in (whole[: whole.index(b"1.jpg") + 700], gzip.compress(whole), b"text"):
        (root / "val.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"val.tar is no whole, uncompressed tar file"):
            module(root).setup("fit")
