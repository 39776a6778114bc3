"""Batch norm over valid cells, in one process against several; the model's own norms in the same way."""

import copy

import pytest
import timm
import torch
from torch import nn

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.layers.norm import batch_norm
from tests.processes import in_processes

SIZES, PADDED = [(64, 64), (50, 37), (29, 90), (64, 96)], (70, 96)


def norm(**arguments):
    torch.manual_seed(0)
    made = nn.BatchNorm2d(6, **arguments).double()
    for weight in made.parameters():
        nn.init.normal_(weight)
    return made


def maps():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, 7, 9, generator=generator, dtype=torch.float64) * 3 + 2
    mask = torch.zeros(3, 7, 9, dtype=torch.bool)
    for own, (rows, columns) in zip(mask, [(7, 9), (1, 4), (5, 2)], strict=True):
        own[:rows, :columns] = True
    return x, mask


@pytest.mark.parametrize("arguments", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_statistics_are_those_of_the_valid_cells_alone(arguments):
    x, mask = maps()
    ours, torchs = norm(**arguments), norm(**arguments)
    for _ in range(2):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        out = batch_norm(ours, a, mask)
        expected = torchs(b.movedim(1, -1)[mask].T[None, :, :, None].contiguous())[0, :, :, 0].T
        torch.testing.assert_close(out.movedim(1, -1)[mask], expected)
        assert not out.movedim(1, -1)[~mask].any()
        grad = torch.randn_like(expected)
        out.movedim(1, -1)[mask].backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(a.grad, b.grad)
    for one, other in zip(ours.state_dict().values(), torchs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_in_evaluation_the_running_statistics_count():
    x, mask = maps()
    layer = norm().eval()
    torch.testing.assert_close(batch_norm(layer, x, mask), layer(x) * mask[:, None])
    assert batch_norm(nn.Identity(), x) is x


def test_one_cell_has_no_statistics():
    x, mask = maps()
    mask[0] = False
    mask[0, 0, 0] = True
    made = norm()
    assert batch_norm(made, x[:1], mask[:1])[0, :, 0, 0].isnan().all()
    assert made.running_mean.isfinite().all()  # what is evaluated later is not lost
    assert made.running_var.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_maps_have_statistics_in_float32(dtype):
    x, mask = maps()
    layer = norm().float()
    out = batch_norm(layer, x.to(dtype), mask)
    assert out.dtype == dtype
    wide = batch_norm(copy.deepcopy(layer), x.to(dtype).float(), mask)
    torch.testing.assert_close(out, wide.to(dtype))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_large_map_loses_no_digits_in_float32(layout):
    """A plain float32 sum of a million squares is wrong in the fourth digit."""
    x = torch.randn(2, 4, 1024, 512, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=layout)
    mask = torch.ones(2, 1024, 512, dtype=torch.bool)
    mask[1, :, 500:] = False
    out = batch_norm(nn.BatchNorm2d(4), x, mask)
    exact = batch_norm(nn.BatchNorm2d(4).double(), x.double(), mask)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5)


def network():
    torch.manual_seed(0)
    arguments = dict(embed_dims=(8, 16, 24, 32), num_heads=(1, 1, 1, 1), normalize=True)
    return timm.create_model("soft_nano", num_classes=5, **arguments).double().train()


def batch(numbers, masked):
    """Returns images of this process, and their mask; of all sizes, or of one."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(SIZES), 3, *PADDED, generator=generator, dtype=torch.float64)
    if not masked:
        return x[numbers], None
    mask = torch.zeros(len(SIZES), *PADDED, dtype=torch.bool)
    for own, (rows, columns) in zip(mask, SIZES, strict=True):
        own[:rows, :columns] = True
    return x[numbers], mask[numbers]


def step(model, numbers, masked):
    x, mask = batch(numbers, masked)
    x.requires_grad_()
    out = model(x, mask)
    out.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return out.detach(), x.grad, grads, dict(model.named_buffers())


def part(rank, masked, parts):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    return step(model, parts[rank], masked)


# the two processes have other numbers of images and of valid cells; in the last one of them has no padding at all
@pytest.mark.parametrize(
    ("masked", "parts"),
    [
        (True, [[0, 1, 2], [3]]),
        pytest.param(False, [[0], [1, 2, 3]], marks=pytest.mark.slow),
        pytest.param(True, [[1], [2]], marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one(masked, parts):
    first, second = in_processes(part, 2, masked, parts)
    out, grad, grads, buffers = step(network(), [*parts[0], *parts[1]], masked)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), out)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), grad)
    for name, expected in grads.items():
        torch.testing.assert_close(first[2][name] + second[2][name], expected)
    for name, expected in buffers.items():
        torch.testing.assert_close(first[3][name], expected)
        torch.testing.assert_close(second[3][name], expected)


def unequal(rank):
    """One process has padding, the other none, and so no mask."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[:, :, 40:] = rank == 0
    out = model(x, mask if rank else None)
    out.sum().backward()
    return out.detach(), dict(model.named_buffers())


def test_a_process_without_padding_waits_for_none():
    first, second = in_processes(unequal, 2)
    for name, buffer in first[1].items():
        torch.testing.assert_close(second[1][name], buffer)


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.convert_sync_batchnorm])
def test_conversion_changes_nothing_in_one_process(convert):
    model = network()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    converted = convert(copy.deepcopy(model))
    torch.testing.assert_close(converted(x), model(x))
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))
