import pytest
import torch

from softmaxfree.data import DigitsDataModule


@pytest.fixture(scope="module")
def digits():
    data = DigitsDataModule(img_size=28, batch_size=50)
    data.setup("fit")
    return data


def test_the_split_is_stratified_and_disjoint(digits):
    train, val = digits._train, digits._val
    assert train.labels.bincount().tolist() == [400] * 10
    assert val.labels.bincount().tolist() == [100] * 10
    rows = torch.cat([train.images, val.images]).flatten(1)
    distinct = len(rows.unique(dim=0))
    assert distinct == 5000


def test_the_split_does_not_depend_on_the_seed(digits):
    other = DigitsDataModule(img_size=28, seed=7)
    other.setup("fit")
    assert torch.equal(other._val.images, digits._val.images)


def test_only_training_images_are_distorted(digits):
    train, val = digits._train, digits._val
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(val[0][0], val[0][0])
    plain = DigitsDataModule(img_size=28, augment=False)
    plain.setup("fit")
    assert torch.equal(plain._train[0][0], plain._train[0][0])


def test_pixels_are_normalized(digits):
    pixels = torch.stack([digits._val[i][0] for i in range(1000)])
    assert abs(pixels.mean()) < 0.05
    assert abs(pixels.std() - 1) < 0.05


def test_images_are_enlarged():
    data = DigitsDataModule(img_size=40, batch_size=50)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (50, 1, 40, 40)
    assert labels.shape == (50,)
    assert data.data_config["input_size"] == (1, 40, 40)
