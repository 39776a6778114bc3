"""What the attributes of coordinates tell of a slide."""

import numpy as np
import pytest

from softmaxfree.mil.data.lattice import patch_size_of, slide_size_of, step_of

TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 64,
    "level0_width": 50_000,
    "level0_height": 40_000,
}
CLAM = {  # patches of 256 pixels of level 1
    "patch_size": 256,
    "patch_level": 1,
    "downsample": np.array([4.0, 4.0]),
    "downsampled_level_dim": np.array([12_500, 10_000]),
    "level_dim": np.array([12_500, 10_000]),
    "name": "slide",
}


@pytest.mark.parametrize(
    ("attributes", "step", "patch", "size"),
    [
        (TRIDENT, 384, 512, (50_000, 40_000)),
        (CLAM, None, 1024, (50_000, 40_000)),
        ({**CLAM, "downsample": 2.0, "level_dim": (25_000, 20_000)}, None, 512, (50_000, 40_000)),
        ({"patch_size": 256, "level0_width": "None", "level0_height": "None"}, None, None, None),
        ({}, None, None, None),
    ],
)
def test_sizes_at_level_0(attributes, step, patch, size):
    assert (step_of(attributes), patch_size_of(attributes), slide_size_of(attributes)) == (step, patch, size)
