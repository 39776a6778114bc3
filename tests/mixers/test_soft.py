"""The attention layer: parity with the released code, sequences, arguments."""

import pytest
import torch

from softmaxfree import ops
from softmaxfree.layers import Block
from softmaxfree.mixers import SoftmaxFreeAttention, create_mixer
from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER, from_released
from tests import golden_files
from tests.helpers import MAX_RELATIVE_ERROR, assert_no_worse_than

pytestmark = pytest.mark.usefixtures("device")

BLOCK = "stages.0.blocks.0.attn."


def released_attention(name: str, dtype: torch.dtype):
    """Returns the layer with the golden weights, the golden tensors, and the grid."""
    tensors, meta = golden_files.load(name)
    tensors = {key: value.to(torch.get_default_device()) for key, value in tensors.items()}
    normalize = meta["norm"] == "True"
    layer = SoftmaxFreeAttention(
        int(meta["dim"]),
        int(meta["heads"]),
        ratio=int(meta["ratio"]),
        value_kernel=int(meta["conv"]),
        normalize=normalize,
        solver=RELEASED_NORMALIZED_SOLVER if normalize else ops.Newton(),
        dtype=dtype,
    )
    layer.load_state_dict(renamed(golden_files.below(tensors, "weight.")))
    return layer, tensors, [int(meta["height"]), int(meta["width"])]


def renamed(released: dict) -> dict:
    """Returns tensors of the released attention module under our names."""
    return golden_files.below(from_released({f"block1.0.att.mha.{k}": v for k, v in released.items()}), BLOCK)


def run(name: str, dtype: torch.dtype, with_gradients: bool) -> dict[str, torch.Tensor]:
    layer, tensors, grid = released_attention(name, dtype)
    x = tensors["x"].to(dtype).requires_grad_()
    out = layer(x, grid)
    if not with_gradients:
        return {"out": out}
    out.backward(tensors["grad_out"].to(dtype))
    return {"out": out, "grad_x": x.grad} | {f"grad.{k}": p.grad for k, p in layer.named_parameters()}


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_values_and_gradients_are_the_released_ones(ratio):
    name = f"attention_ratio{ratio}"
    _, tensors, _ = released_attention(name, torch.float32)
    golden = {k: tensors[k] for k in ("out", "grad_x")}
    golden |= {f"grad.{k}": v for k, v in renamed(golden_files.below(tensors, "grad.")).items()}
    ours, exact = run(name, torch.float32, True), run(name, torch.float64, True)
    assert golden.keys() == ours.keys()
    for key, value in golden.items():
        assert_no_worse_than(ours[key], value, exact[key], name=key)
        assert (ours[key] - value).abs().max() <= MAX_RELATIVE_ERROR * value.abs().max(), key


def test_normalised_values_are_the_released_ones_at_batch_size_one():
    _, tensors, _ = released_attention("attention_norm_ratio4", torch.float32)
    ours = run("attention_norm_ratio4", torch.float32, False)["out"]
    exact = run("attention_norm_ratio4", torch.float64, False)["out"]
    assert_no_worse_than(ours, tensors["out"], exact)
    assert (ours - tensors["out"]).abs().max() <= MAX_RELATIVE_ERROR * tensors["out"].abs().max()


@pytest.mark.parametrize("sampling", ["conv", "mean", "random", "first"])
def test_a_sequence_is_an_image_of_one_row_with_windows_of_one_row(sampling):
    sequence = SoftmaxFreeAttention(16, 2, ratio=1, landmark_sampling=sampling, landmark_grid=(8,), ndim=1)
    image = SoftmaxFreeAttention(16, 2, ratio=1, landmark_sampling=sampling, landmark_grid=(1, 8))
    weights = sequence.state_dict()
    weights["value_conv.weight"] = torch.nn.functional.pad(weights["value_conv.weight"].unsqueeze(2), (0, 0, 1, 1))
    if sampling == "conv":
        weights["landmarks.conv.weight"] = weights["landmarks.conv.weight"].unsqueeze(2)
    image.load_state_dict(weights)
    x = torch.randn(2, 33, 16)
    torch.testing.assert_close(sequence(x, [33]), image(x, [1, 33]))


def test_the_value_convolution_is_one_filter_a_head():
    layer = SoftmaxFreeAttention(12, 3, ratio=2, value_kernel=5)
    values = torch.randn(2, 7 * 9, 12)
    per_head = values.view(2, 7, 9, 3, 4).permute(0, 4, 3, 1, 2).flatten(0, 1)
    expected = layer.value_conv(per_head).view(2, 4, 3, 7, 9).permute(0, 3, 4, 2, 1).reshape(2, 63, 12)
    torch.testing.assert_close(layer.convolve(values.unflatten(-1, (3, 4)).transpose(1, 2), [7, 9]), expected)
    assert SoftmaxFreeAttention(12, 3, ratio=2, value_kernel=0).value_conv is None


def test_stochastic_depth_drops_whole_images():
    block = Block(create_mixer("soft", dim=16, num_heads=2, ratio=2), drop_path=0.5).train()
    x = torch.randn(64, 16, 16)
    branch = block.drop_path1(x)
    kept = branch.flatten(1).abs().amax(1) > 0
    assert 10 < kept.sum() < 54
    torch.testing.assert_close(branch[kept], x[kept] / 0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(dim=10, num_heads=3, ratio=2), "num_heads must divide the width 10, got 3"),
        (dict(dim=12, num_heads=3, ratio=2, value_kernel=4), "value_kernel must be odd"),
        (
            dict(dim=12, num_heads=3, ratio=2, landmark_sampling="max"),
            "landmark_sampling must be one of conv, mean",
        ),
        (dict(dim=12, num_heads=3, ratio=2, landmark_grid=(4,)), "landmark_grid must be a list of 2 whole numbers"),
        (
            dict(dim=12, num_heads=3, ratio=2, landmark_grid=(16.5, 2)),
            "landmark_grid must be a list of 2 whole numbers",
        ),
        (
            dict(dim=12, num_heads=3, ratio=2, landmark_grid=16),
            "landmark_grid must be a list of 2 whole numbers, 1 or more",
        ),
        (dict(dim=12, num_heads=3, ratio=2, value_kernel=-1), "value_kernel must be 0 or more, got -1"),
        (dict(dim=12, num_heads=3, ratio=0), "ratio must be 1 or more, got 0"),
        (dict(dim=12, num_heads=0, ratio=2), "num_heads must be 1 or more, got 0"),
        (dict(dim=0, num_heads=1, ratio=2), "dim must be 1 or more, got 0"),
        (dict(dim=12, num_heads=3, ratio=2, ndim=3, landmark_grid=None), "ndim must be 1 for sequences or 2"),
        (dict(dim=12, num_heads=3, ratio=2, ndim=True, landmark_grid=None), "ndim must be a whole number"),
        (dict(dim=12, num_heads=3, ratio=2, solver="gauss"), "solver 'gauss' is not one of"),
        (dict(dim=12, num_heads=3, ratio=2, normalize="no"), "normalize must be True or False"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxFreeAttention(**kwargs)


@pytest.mark.parametrize("sampling", ["conv", "mean", "random", "first"])
def test_a_padded_sequence_is_the_sequence_alone(sampling):
    layer = SoftmaxFreeAttention(16, 2, ratio=2, landmark_sampling=sampling, landmark_grid=(8,), ndim=1).double()
    x, lengths = torch.randn(3, 33, 16, dtype=torch.float64), (33, 20, 7)
    mask = torch.arange(33) < torch.tensor(lengths).unsqueeze(1)
    out = layer(x, [33], mask)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(out[i, :length], layer(x[i : i + 1, :length], [length])[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(mlp_ratio=0), "mlp_ratio must be enough for one hidden feature"),
        (dict(mlp_ratio=float("nan")), "mlp_ratio must be 0 or more, got nan"),
        (dict(drop_path=1.0), r"drop_path must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_of_a_block_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Block(create_mixer("soft", dim=12, num_heads=3, ratio=2), **kwargs)


def test_normalised_it_approximates_no_exact_form():
    assert create_mixer("soft", dim=8, num_heads=2).approximates == "gaussian"
    assert create_mixer("soft", dim=8, num_heads=2, normalize=True).approximates == ""


@pytest.mark.parametrize("name", ["soft", "gaussian"])
def test_what_a_layer_gave_is_not_changed_behind_it(name):
    """As of hooks, which may keep it."""
    mixer, kept = create_mixer(name, dim=16, num_heads=2), []
    for layer in (mixer.q, mixer.v):
        layer.register_forward_hook(lambda layer, args, out: kept.append((out, out.clone())))
        layer.register_full_backward_hook(lambda layer, given, out: None)
    mixer(torch.randn(1, 64, 16, requires_grad=True), [8, 8]).sum().backward()
    assert len(kept) == 2
    assert all(torch.equal(now, then) for now, then in kept)
