"""Stem, downsampling, and the position table."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from skimage import data

from softmaxfree.errors import InputError
from softmaxfree.layers import PositionTable, downsample, stem
from softmaxfree.layers.contrast import local_contrast
from softmaxfree.layers.embed import feature_map, resize_matrix

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("size", [(1, 1), (29, 30), (224, 97)])
def test_strides_round_up(size):
    x = torch.randn(2, 3, *size)
    y = stem(3, 16).eval()(x)
    assert y.shape == (2, 16, -(-size[0] // 4), -(-size[1] // 4))
    assert downsample(16, 24).eval()(y).shape == (2, 24, -(-y.shape[2] // 2), -(-y.shape[3] // 2))


def test_local_contrast_is_that_of_the_pixels_around():
    """Each window by itself, in double precision, on a photograph."""
    photo = torch.from_numpy(data.camera()[160:240:4, 180:280:4].copy()).double().sub(120).div(60).cpu()
    around, (height, width) = 3, photo.shape
    rest, out = torch.zeros_like(photo), torch.zeros_like(photo)

    def window(x, i, j):
        return x[max(i - around, 0) : i + around + 1, max(j - around, 0) : j + around + 1]

    for i in range(height):
        for j in range(width):
            rest[i, j] = photo[i, j] - window(photo, i, j).mean()
    for i in range(height):
        for j in range(width):
            out[i, j] = rest[i, j] / (window(rest, i, j).square().mean() + 4e-3).sqrt()
    x = photo[None, None].to(torch.get_default_device())
    torch.testing.assert_close(local_contrast(x, 7)[0, 0].cpu(), out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(local_contrast(x.float(), 7)[0, 0].cpu(), out.float(), rtol=0, atol=2e-5)
    dark = local_contrast(x / 3, 7)[0, 0].cpu()  # a third of the light
    assert torch.corrcoef(torch.stack((dark.flatten(), out.flatten())))[0, 1] > 0.95
    assert dark.std() > 0.6 * out.std()


def test_the_window_of_the_local_contrast_is_odd():
    assert stem(3, 16, contrast_window=5)[0].conv.in_channels == 6
    for window in (1, 4, -1, 2.5):  # with 1 there is nothing around a pixel
        with pytest.raises(InputError, match="contrast_window must be"):
            stem(3, 16, contrast_window=window)


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


def test_nothing_is_kept_from_call_to_call():
    """An edit that no version counts is seen; threads that ask for many sizes get each its own."""
    table, sizes = PositionTable(8, (5, 7)), [(6, 4), (4, 6), (9, 9), (12, 5)]
    with torch.no_grad():
        expected = [table(*size).clone() for size in sizes]
        state = dict(vars(table))
        with ThreadPoolExecutor(4) as pool:
            for i, out in zip(list(range(4)) * 50, pool.map(lambda i: table(*sizes[i % 4]), range(200)), strict=True):
                assert torch.equal(out, expected[i])
        assert vars(table) == state
        table.table.data.mul_(50)
        torch.testing.assert_close(table(6, 4), expected[0] * 50)


def test_with_a_mask_the_table_is_resampled_for_each_image():
    table, sizes = PositionTable(8, (5, 7)), [(5, 7), (6, 4), (1, 9)]
    mask = torch.zeros(3, 6, 9, dtype=torch.bool)
    for image, (height, width) in zip(mask, sizes, strict=True):
        image[:height, :width] = True
    positions = table(6, 9, mask).unflatten(1, (6, 9))
    for image, (height, width) in zip(positions, sizes, strict=True):
        torch.testing.assert_close(image[:height, :width].flatten(0, 1), table(height, width)[0], rtol=1e-5, atol=1e-7)


def test_a_float64_table_is_resampled_in_float64():
    table, mask = PositionTable(8, (5, 7), dtype=torch.float64), torch.ones(1, 6, 4, dtype=torch.bool)
    image = table.table.view(1, 5, 7, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=(6, 4), mode="bilinear").flatten(2).transpose(1, 2)
    for out in (table(6, 4), table(6, 4, mask)):
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("source", [1, 5, 56])
def test_resize_matrix_is_linear_interpolation(source):
    x, sizes = torch.randn(3, source), [1, 17, 70]
    matrices = resize_matrix(torch.tensor(sizes), 70, source)
    for matrix, size in zip(matrices, sizes, strict=True):
        expected = F.interpolate(x.unsqueeze(0), size=size, mode="linear")[0]
        torch.testing.assert_close(x @ matrix[:size].T, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_stem_sees_zeros_in_the_padding(training):
    layer = stem(3, 16).train(training)
    for conv in layer:
        torch.nn.init.normal_(conv.bn.bias)  # so that padding does not stay zero by itself
    x, mask = torch.randn(1, 3, 29, 30), torch.zeros(1, 29, 30, dtype=torch.bool)
    mask[:, :22, :25] = True
    out = layer(x.masked_fill(~mask, 0), mask)
    torch.testing.assert_close(out[..., :6, :7], layer(x[..., :22, :25]), rtol=1e-4, atol=1e-5)
    assert not out[..., 6:, :].any()
    assert not out[..., 7:].any()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_feature_map_is_channels_last_to_convolutions(batch: int):
    image = feature_map(torch.randn(batch, 30, 16), [5, 6])
    assert image.stride() == torch.empty(batch, 16, 5, 6).to(memory_format=torch.channels_last).stride()
    assert F.conv2d(image, torch.randn(16, 1, 3, 3), padding=1, groups=16).stride(1) == 1


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 5)])
def test_a_narrow_map_has_a_gradient_in_bfloat16(size):
    """With AMX, oneDNN leaves what is learned of columns that see padding alone as it was in memory."""
    torch.manual_seed(0)
    layer = downsample(8, 16).train()
    x = torch.randn(16, 8, *size)
    layer(x).square().sum().backward()
    expected = layer[0].conv.weight.grad.clone()
    for _ in range(5):
        layer.zero_grad()
        torch.full((1_000_000,), torch.nan)  # what is left in memory
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        out.float().square().sum().backward()
        found = layer[0].conv.weight.grad
        assert (found - expected).norm() <= 0.05 * expected.norm()
