"""The folders of these tests."""

import pytest

from tests.data.folders.small import CLASSES, write_images


@pytest.fixture
def root(tmp_path):
    """A training split of 12 and a validation split of 6 images."""
    for name in CLASSES:
        write_images(tmp_path / "train" / name, 4)
        write_images(tmp_path / "val" / name, 2)
    return tmp_path
