import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from softmaxfree.data import SolarCellsDataModule
from softmaxfree.data.cracks import draw_cracks
from softmaxfree.data.solar import read_cells, split_cells
from softmaxfree.errors import InputError


@pytest.fixture(scope="module")
def cells():
    data = SolarCellsDataModule(batch_size=16, img_size=32)
    data.setup("fit")
    return data


def test_the_split(cells, capsys):
    images, probabilities, kinds = read_cells()
    train, val = split_cells(probabilities, kinds)
    assert images.shape == (2624, 300, 300)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(2624))
    assert cells.num_images == {"train": len(train), "val": len(val)} == {"train": 1970, "val": 654}
    assert cells.class_counts == (1353, 617)
    assert cells.found.startswith("2624 solar cells of 2 classes: 1970 to train, 654 to validate")
    for kind in ("mono", "poly"):
        for probability in probabilities.unique():
            group = (probabilities == probability).numpy() & (kinds == kind)
            assert abs(group[val.numpy()].sum() - group.sum() / 4) <= 0.5
    SolarCellsDataModule().setup("fit")
    assert "CC-BY-NC-SA-4.0" in capsys.readouterr().out


def test_batches(cells):
    images, labels = next(iter(cells.train_dataloader()))
    assert images.shape == (16, 1, 32, 32)
    assert labels.dtype == torch.int64
    whole = torch.cat([images for images, _ in cells.val_dataloader()])
    assert abs(whole.mean()) < 0.05
    assert whole.std() == pytest.approx(0.95, abs=0.1)
    held = torch.cat([labels for _, labels in cells.val_dataloader()])
    assert held.bincount().tolist() == [450, 204]


def test_soft_targets_are_the_probabilities_of_a_defect():
    data = SolarCellsDataModule(batch_size=16, img_size=32, soft_targets=True)
    data.setup("fit")
    targets = data._sets["train"].dataset.targets
    assert torch.allclose(targets.sum(1), torch.ones(1970))
    assert targets[:, 1].unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert data._sets["val"][0][1].ndim == 0


@pytest.mark.parametrize("soft", [False, True])
def test_cracks_are_drawn_into_functional_cells_of_the_training_alone(soft):
    random.seed(5)
    data = SolarCellsDataModule(img_size=32, soft_targets=soft, cracks=0.5)
    data.setup("fit")
    images, probabilities, kinds = read_cells()
    train, _ = split_cells(probabilities, kinds)
    cells = data._sets["train"].dataset
    changed, chosen = 0, range(0, 1970, 5)
    for i in chosen:
        image, target = cells[i]
        own = probabilities[train[i]].item()
        if np.array_equal(image, images[train[i]]):
            assert target.tolist() == (pytest.approx([1 - own, own]) if soft else int(own > 0.5))
        else:
            changed += 1
            assert own < 0.5
            assert target.tolist() == ([0, 1] if soft else 1)
    functional = (probabilities[train[chosen]] < 0.5).sum().item()
    assert changed == pytest.approx(functional / 2, abs=3 * (functional / 4) ** 0.5)
    held = data._sets["val"].dataset
    assert all(np.array_equal(held[i][0], held.images[i]) for i in range(0, 654, 5))
    with pytest.raises(InputError, match=r"data.cracks must be from 0 to 1, got 1.5"):
        SolarCellsDataModule(cracks=1.5)


def test_a_crack_is_a_thin_dark_line():
    grey = Image.new("L", (300, 300), 200)
    shares = []
    for seed in range(40):
        random.seed(seed)
        drawn = np.asarray(draw_cracks(grey), int)
        random.seed(seed)
        assert np.array_equal(drawn, np.asarray(draw_cracks(grey)))
        assert drawn.shape == (300, 300)
        assert drawn.max() <= 200
        shares.append((drawn < 0.93 * 200).mean())
    assert 0.001 < np.median(shares) < 0.02
    assert np.asarray(grey).min() == 200  # the image that is given stays


def test_without_the_package(monkeypatch):
    read_cells.cache_clear()
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", None)
    with pytest.raises(InputError, match=r"pip install 'softmaxfree\[solar\]'"):
        SolarCellsDataModule().setup("fit")
