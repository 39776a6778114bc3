"""The data set of these tests."""

import numpy as np
import pytest
from PIL import Image

from tests.data.coco.small import SIZES, content, write


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        for i, (height, width) in SIZES.items():
            shape = (height, width) if i == 5 else (height, width, 3)
            pixels = rng.integers(0, 255, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{split}2017" / f"{i}.jpg")
        write(tmp_path, split, content())
    return tmp_path
