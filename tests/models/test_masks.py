"""An image padded in a batch, with a mask, against the image alone: maps, logits and every gradient."""

import copy
import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.helpers import MAX_PADDING_EFFECT
from tests.models.test_golden import released_model

pytestmark = pytest.mark.usefixtures("device")

# at stride 4 and 8 of the padded size there are 4 x 6 landmarks, of the images 4 x 4, 3 x 2, 2 x 5
SIZES, PADDED = [(64, 64), (50, 37), (29, 90)], (70, 96)
BUDGET = dict(landmark_grid=(3, 4))
SOFTMAX_FREE = dict(last_stage="softmax_free")
CONTRAST = dict(contrast_window=9, stem_stride=8)


def nano(**kwargs) -> nn.Module:
    """Returns a small model whose weights are as far from their initial values as trained ones."""
    model = timm.create_model("soft_nano", num_classes=5, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.5 * module.in_features**-0.5)
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.BatchNorm2d | nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    return model


def batch_of(images: list[Tensor], padded: tuple[int, int] = PADDED) -> tuple[Tensor, Tensor]:
    """Returns the images, padded with NaN, and their mask."""
    x = images[0].new_full((len(images), images[0].shape[0], *padded), torch.nan)
    mask = torch.zeros(len(images), *padded, dtype=torch.bool)
    for i, image in enumerate(images):
        x[i, :, : image.shape[1], : image.shape[2]] = image
        mask[i, : image.shape[1], : image.shape[2]] = True
    return x, mask


def test_gradients_of_each_sample_with_a_mask_of_its_own():
    model = nano()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    x, mask = batch_of([torch.randn(3, *size) for size in SIZES])
    x = x.nan_to_num()

    def loss(weights, image, valid):
        out = torch.func.functional_call(model, (weights, buffers), (image[None],), {"mask": valid[None]})
        return out.square().sum()

    with warnings.catch_warnings(action="ignore"):  # torch's, of operators that it maps one by one
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, mask)
    for i, size in enumerate(SIZES):
        model.zero_grad()
        model(x[i : i + 1, :, : size[0], : size[1]]).square().sum().backward()
        for name, parameter in model.named_parameters():
            scale = max(parameter.grad.abs().max(), 1e-3)
            assert (each[name][i] - parameter.grad).abs().max() <= MAX_PADDING_EFFECT * 10 * scale, name


def results(model: nn.Module, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    features, maps = model.forward_intermediates(x, mask=mask)
    return [*maps, model.forward_head(features, mask=mask)]


def assert_close(value: Tensor, expected: Tensor, name: str, scale: Tensor | None = None) -> None:
    error = (value - expected).abs().max() / (expected if scale is None else scale).abs().max()
    assert error <= MAX_PADDING_EFFECT, f"{name}: {error:.1e}"


def assert_each_is_as_alone(model: nn.Module, sizes=SIZES, padded=PADDED) -> None:
    images = [torch.randn(3, *size, dtype=next(model.parameters()).dtype) for size in sizes]
    x, mask = batch_of(images, padded)
    x.requires_grad_()
    together = results(model, x, mask)
    alone = [image.requires_grad_() for image in images]
    expected = [results(model, image[None]) for image in alone]
    grads = [[torch.randn_like(value) for value in values] for values in expected]

    loss = 0
    for i, values in enumerate(expected):
        for k, (value, grad) in enumerate(zip(values, grads[i], strict=True)):
            ours = together[k][i]
            if ours.ndim == 3:
                rest = ours.detach().clone()
                ours = ours[:, : value.shape[2], : value.shape[3]]
                rest[:, : value.shape[2], : value.shape[3]] = 0
                assert not rest.any(), f"padding of map {k} of image {i}"
            assert_close(ours, value[0], f"result {k} of image {i}")
            loss = loss + (ours * grad[0]).sum()
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    for values, grad in zip(expected, grads, strict=True):
        torch.autograd.backward(values, grad)

    for i, image in enumerate(alone):
        assert_close(x.grad[i, :, : image.shape[1], : image.shape[2]], image.grad, f"gradient of image {i}")
    assert not x.grad[~mask[:, None].expand_as(x)].any()
    assert_same_gradients(ours, model)


def assert_same_gradients(grads: dict[str, Tensor], model: nn.Module) -> None:
    for name, p in model.named_parameters():
        # some are zero but for rounding: of a bias before batch norm, or of one that moves queries and keys alike
        layer = model.get_submodule(name.rpartition(".")[0])
        scale = torch.stack([q.grad.abs().max() for q in layer.parameters(recurse=False)]).max()
        assert_close(grads[name], p.grad, f"gradient of {name}", scale)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kwargs", [{}, SOFTMAX_FREE, BUDGET, SOFTMAX_FREE | BUDGET | dict(output_stride=8), CONTRAST])
def test_a_padded_image_is_the_image_alone(kwargs, normalize):
    assert_each_is_as_alone(nano(**kwargs, normalize=normalize))


@pytest.mark.parametrize("kwargs", [{}, BUDGET])
@pytest.mark.parametrize("sampling", ["mean", "random", "first"])
def test_so_it_is_with_every_sampling(sampling, kwargs):
    # in double precision: landmarks that are tokens can be so close to each other that rounding alone moves the result
    assert_each_is_as_alone(nano(landmark_sampling=sampling, **SOFTMAX_FREE, **kwargs).double())


@pytest.mark.parametrize("name", ["model_soft", "model_soft_norm"])
def test_so_it_is_with_the_released_codes_weights(name):
    model, _ = released_model(name, torch.float32)
    assert_each_is_as_alone(model, [(64, 72), (60, 96)], (88, 100))


def test_in_training_the_statistics_are_of_the_valid_cells():
    model, other = nano().train(), nano().train()
    other.load_state_dict(model.state_dict())
    image = torch.randn(3, 50, 37)
    together, alone = results(model, *batch_of([image, image])), results(other, image.expand(2, -1, -1, -1))
    assert_close(together[-1], alone[-1], "logits")
    torch.autograd.backward([together[-1].square().sum(), alone[-1].square().sum()])
    assert_same_gradients({name: p.grad for name, p in model.named_parameters()}, other)
    for (name, buffer), expected in zip(model.named_buffers(), other.buffers(), strict=True):
        if "running" in name:
            assert_close(buffer, expected, name)


def test_in_double_precision_padding_costs_no_digits():
    model = nano(**SOFTMAX_FREE).double()
    images = [torch.randn(3, *size, dtype=torch.float64) for size in ((90, 200), (220, 210), (256, 330))]
    together = results(model, *batch_of(images, (256, 330)))[-1]
    alone = torch.cat([results(model, image[None])[-1] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_a_mask_without_padding_changes_nothing():
    model, x = nano(), torch.randn(2, 3, 50, 64)
    assert torch.equal(model(x, torch.ones(2, 50, 64, dtype=torch.bool)), model(x))


def test_features_and_pooled_features_take_masks():
    x, mask = batch_of([torch.randn(3, 50, 37), torch.randn(3, 64, 64)])
    network = timm.create_model("soft_nano", features_only=True, out_indices=(1, 3)).eval()
    for ours, alone in zip(network(x, mask), network(x[:1, :, :50, :37]), strict=True):
        assert_close(ours[:1, :, : alone.shape[2], : alone.shape[3]], alone, "map")
    model = timm.create_model("soft_nano", num_classes=0, global_pool="avg").eval()
    assert_close(model(x, mask)[:1], model(x[:1, :, :50, :37]), "pooled")
    model.prune_intermediate_layers([1])
    model.reset_classifier(0, "avg")
    assert_close(model(x, mask)[:1], model(x[:1, :, :50, :37]), "pooled map of stride 8")


def test_checkpointing_takes_masks():
    model = nano()
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    x, mask = batch_of([torch.randn(3, *size) for size in SIZES])
    for net in (model, again):
        net(x, mask).square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_under_autocast_and_in_half(dtype):
    model = nano()
    x, mask = batch_of([torch.randn(3, *size) for size in SIZES])
    with torch.autocast("cpu", dtype):
        assert model(x, mask).isfinite().all()
    assert model.to(dtype)(x.to(dtype), mask).isfinite().all()


def bad_mask(change) -> Tensor:
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    mask[1, 40:] = False
    change(mask)
    return mask


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 64, 32, dtype=torch.bool), r"mask must be bool \(2, 64, 64\), got torch.bool \(2, 64, 32\)"),
        (torch.ones(2, 64, 64), r"mask must be bool \(2, 64, 64\), got torch.float32 \(2, 64, 64\)"),
        (
            torch.ones(2, 64, 64, dtype=torch.bool, device="meta"),
            "mask must be on the device of x, cpu, or on the CPU, got meta",
        ),
        ([(64, 64)] * 2, r"mask must be None or a bool tensor \(B, height, width\), got list"),
        (
            bad_mask(lambda m: m[1].fill_(False)),
            "mask must be True somewhere in every image, is False all over image 1",
        ),
        (
            bad_mask(lambda m: m[1, 3, 3].fill_(False)),
            "one rectangle at the top left of every image, is not in image 1",
        ),
        (bad_mask(lambda m: m[1, :5].fill_(False)), "one rectangle at the top left of every image, is not in image 1"),
        (
            bad_mask(lambda m: m[1, 12:].fill_(False)),
            "mask must leave at least 13x13 pixels .*, leaves 12x64 of image 1",
        ),
    ],
)
def test_bad_masks_are_named(mask, message):
    with pytest.raises(ValueError, match=message):
        nano()(torch.randn(2, 3, 64, 64), mask)
