"""Stem, downsampling, and the position table with its cache."""

import pytest
import torch
import torch.nn.functional as F

from softmaxfree.layers import PositionTable, downsample, stem


@pytest.mark.parametrize("size", [(1, 1), (29, 30), (224, 97)])
def test_strides_round_up(size):
    x = torch.randn(2, 3, *size)
    y = stem(3, 16).eval()(x)
    assert y.shape == (2, 16, -(-size[0] // 4), -(-size[1] // 4))
    assert downsample(16, 24).eval()(y).shape == (2, 24, -(-y.shape[2] // 2), -(-y.shape[3] // 2))


def test_the_table_itself_at_its_own_size():
    table = PositionTable(8, (5, 7))
    assert table(5, 7) is table.table


def test_resampled_bilinearly_elsewhere():
    table = PositionTable(8, (5, 7))
    image = table.table.view(1, 5, 7, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(6, 4), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(table(6, 4), expected)
    table(6, 4).sum().backward()
    assert table.table.grad is not None


def test_the_cache_holds_until_the_weights_change():
    table = PositionTable(8, (5, 7))
    with torch.no_grad():
        first = table(6, 4)
        assert table(6, 4) is first
        assert table(4, 6) is not first
        table.table.mul_(2)
        torch.testing.assert_close(table(6, 4), first * 2)
        table.load_state_dict({"table": torch.zeros(1, 35, 8)})
        assert not table(6, 4).any()
    with torch.inference_mode():
        assert not table(6, 4).any()
    assert table.double()(6, 4).dtype == torch.float64
