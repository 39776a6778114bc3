"""What holds for every mixer of the registry; a mixer that misses it is found here, by its name alone."""

import copy
import json

import pytest
import timm
import torch

from softmaxfree.errors import InputError
from softmaxfree.mixers import AbstractMixer, create_mixer, list_mixers, mixer_class
from tests.helpers import slow_but

NAMES = list_mixers()
DIM, HEADS = 24, 3
GRIDS = [(4, 5), (6, 6), (1, 7), (9, 2), (1, 1), (13, 11)]
# arguments of mixers whose defaults are for images
OF_SEQUENCES = {
    "linformer": {"landmark_grid": (16,)},
    "nystrom": {"landmark_grid": (16,)},
    "soft": {"ndim": 1, "landmark_grid": (16,)},
    "softn": {"landmark_grid": (16,)},
}

every_mixer = pytest.mark.parametrize("name", NAMES)


def make(name: str, dtype: torch.dtype = torch.float64, **own) -> AbstractMixer:
    """Returns a mixer in evaluation mode whose weights are large enough for their effect to be seen."""
    torch.manual_seed(0)
    mixer = create_mixer(name, dim=DIM, num_heads=HEADS, dtype=dtype, **own).eval()
    for parameter in mixer.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2)
    return mixer


def fits(mixer: AbstractMixer, grid: tuple[int, ...]) -> bool:
    return len(grid) in mixer.ndims and min(grid) >= mixer.min_grid


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(1), dtype=dtype)


def qkv(mixer: AbstractMixer, grid: tuple[int, ...], batch: int = 2) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return mixer.project(tokens(batch, torch.Size(grid).numel()))


@every_mixer
def test_it_tells_what_it_is(name):
    mixer = make(name)
    assert mixer.name == name
    assert type(mixer).__doc__
    assert mixer.source
    config = mixer.config()
    assert json.loads(json.dumps(config)) == config
    assert config.pop("name") == name
    again = create_mixer(name, dim=DIM, num_heads=HEADS, dtype=torch.float64, **config).eval()
    again.load_state_dict(mixer.state_dict())
    x = tokens(2, 42)
    torch.testing.assert_close(again(x, [6, 7]), mixer(x, [6, 7]), rtol=0, atol=0)


@every_mixer
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_any_grid_and_batch(name, grid):
    mixer = make(name)
    cells = torch.Size(grid).numel()
    if not fits(mixer, grid):
        with pytest.raises(InputError, match="grid of"):
            mixer(tokens(1, cells), list(grid))
        return
    x = tokens(3, cells)
    out = mixer(x, list(grid))
    assert out.shape == x.shape
    assert out.isfinite().all()
    alone = torch.cat([mixer(own, list(grid)) for own in x.split(1)])
    torch.testing.assert_close(out, alone, rtol=1e-9, atol=1e-11)
    assert mixer(x[:0], list(grid)).shape == (0, cells, DIM)


@every_mixer
def test_a_sequence(name):
    if 1 in mixer_class(name).ndims:
        mixer = make(name, **OF_SEQUENCES.get(name, {}))
        assert mixer(tokens(2, 37), [37]).isfinite().all()
    else:
        with pytest.raises(InputError, match="must have 2 axes"):
            make(name)(tokens(2, 37), [37])


@every_mixer
def test_mix_is_linear_in_the_values_where_it_says_so(name):
    mixer, grid = make(name), [4, 6]
    q, k, v = qkv(mixer, (4, 6))
    other = torch.randn_like(v)
    mixed = mixer.mix(q, k, v, grid)
    both = mixer.mix(q, k, v + 2 * other, grid)
    linear = torch.allclose(both, mixed + 2 * mixer.mix(q, k, other, grid), rtol=1e-8, atol=1e-9)
    assert linear == mixer.linear_in_v


@every_mixer
def test_rows_sum_to_what_is_claimed(name):
    mixer, grid = make(name), [4, 6]
    if mixer.row_sum is None:
        pytest.skip("claims nothing")
    q, k, v = qkv(mixer, (4, 6))
    out = mixer.mix(q, k, torch.ones_like(v), grid)
    torch.testing.assert_close(out, torch.full_like(out, mixer.row_sum), rtol=0, atol=1e-4)


@every_mixer
def test_gradients(name):
    mixer = make(name)
    side = max(2, mixer.min_grid)
    grid = [side, side + 1]
    q, k, v = (x.contiguous() for x in qkv(mixer, tuple(grid), batch=1))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda q, k, v: mixer.mix(q, k, v, grid), inputs, atol=1e-5, fast_mode=True)
    mixer(tokens(1, side * (side + 1)), grid).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters() if p.requires_grad)


@every_mixer
def test_padding_leaves_no_trace_or_is_refused(name):
    mixer, padded, own = make(name), (6, 7), [(6, 7), (4, 5), (3, 7)]
    x = tokens(3, 42).view(3, *padded, DIM)
    mask = torch.zeros(3, *padded, dtype=torch.bool)
    for i, (h, w) in enumerate(own):
        mask[i, :h, :w] = True
    x = torch.where(mask.unsqueeze(-1), x, 5 * x).flatten(1, 2).requires_grad_()
    if not mixer.masks:
        with pytest.raises(InputError, match="mask must be None"):
            mixer(x, list(padded), mask)
        return
    out = mixer(x, list(padded), mask)
    assert out.isfinite().all()
    image = out.view(3, *padded, DIM)
    for i, (h, w) in enumerate(own):
        alone = x.detach().view(3, *padded, DIM)[i : i + 1, :h, :w].reshape(1, h * w, DIM)
        expected = mixer(alone, [h, w]).view(h, w, DIM)
        torch.testing.assert_close(image[i, :h, :w], expected, rtol=1e-9, atol=1e-10)
    image[mask].square().sum().backward()
    assert x.grad.view(3, *padded, DIM)[~mask].abs().max() == 0


@every_mixer
def test_an_image_of_padding_alone_is_finite(name):
    mixer = make(name)
    if not mixer.masks:
        pytest.skip("takes no mask")
    x, mask = tokens(2, 42).requires_grad_(), torch.ones(2, 6, 7, dtype=torch.bool)
    mask[1] = False
    out = mixer(x, [6, 7], mask)
    assert out.isfinite().all()
    out[0].square().sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(out[:1], mixer(x[:1], [6, 7]), rtol=1e-9, atol=1e-10)


@every_mixer
def test_a_mask_of_another_kind_is_refused(name):
    mixer, x = make(name), tokens(2, 42)
    mask = torch.ones(2, 6, 7, dtype=torch.bool)
    for wrong in (mask.double(), mask[:, :5], mask.transpose(1, 2), mask.flatten(1), mask[:1]):
        with pytest.raises(InputError, match=r"mask must be (bool \(2, 6, 7\), got|None)"):
            mixer(x, [6, 7], wrong)
    with pytest.raises(InputError, match=r"x must be tokens \(B, N, 24\), got \(2, 42, 23\)"):
        mixer(x[..., 1:], [6, 7])
    with pytest.raises(InputError, match="x must have a token for each of the 42 cells"):
        mixer(x[:, 1:], [6, 7])


@every_mixer
def test_prefix_tokens_are_taken_or_refused(name):
    mixer = make(name)
    x = tokens(2, 21)
    if not mixer.prefix:
        with pytest.raises(InputError, match="takes no prefix tokens"):
            mixer(x, [4, 5])
        return
    out = mixer(x, [4, 5])
    assert out.shape == x.shape
    changed = x.clone()
    changed[:, 0] += 1  # what the class token says reaches the others, unless nothing is mixed
    reaches = (mixer(changed, [4, 5])[:, 1:] - out[:, 1:]).abs().max() > 1e-9
    assert (reaches or not mixer.linear_in_v) if mixer.mixes else not reaches
    if mixer.masks:
        mask = torch.zeros(2, 4, 5, dtype=torch.bool)
        mask[:, :3, :4] = True
        kept = torch.cat([x[:, :1], x[:, 1:].view(2, 4, 5, DIM)[:, :3, :4].flatten(1, 2)], 1)
        alone = mixer(kept, [3, 4])
        padded = mixer(x, [4, 5], mask)
        torch.testing.assert_close(padded[:, 0], alone[:, 0], rtol=1e-9, atol=1e-10)


@every_mixer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    mixer = make(name, torch.float32)
    x = 4 * tokens(2, 64 * 48, dtype=torch.float32)
    exact = mixer.double()(x.double(), [64, 48]).float()
    half = copy.deepcopy(mixer).to(dtype)(x.to(dtype), [64, 48])
    assert half.dtype == dtype
    assert half.isfinite().all()
    mixer.float()
    with torch.autocast("cpu", dtype):
        auto = mixer(x, [64, 48])
    assert auto.isfinite().all()
    eps = torch.finfo(dtype).eps
    assert (auto.float() - exact).norm() / exact.norm() < 40 * eps


@pytest.mark.parametrize("name", slow_but(("mala", "soft", "softmax"), NAMES))
def test_compiles_in_one_graph(name):
    torch._dynamo.reset()
    mixer = make(name, torch.float32)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    for grid in ([4, 6], [7, 5]):
        x = tokens(2, grid[0] * grid[1], dtype=torch.float32).requires_grad_()
        torch.testing.assert_close(compiled(x, grid), mixer(x, grid), rtol=1e-4, atol=1e-5)


@every_mixer
def test_exports_with_dynamic_sizes(name):
    mixer = make(name)
    # at 4 also windows of 2 x 2 are more than one, a size that torch.export takes for a constant
    height, width = (torch.export.Dim(side, min=max(4, mixer.min_grid), max=64) for side in ("height", "width"))

    class OnMap(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = mixer

        def forward(self, x):
            return self.mixer(x.flatten(2).transpose(1, 2), [x.shape[2], x.shape[3]])

    model = OnMap().eval()
    x = torch.randn(2, DIM, 12, 10, dtype=torch.float64)
    shapes = {"x": {0: torch.export.Dim("batch"), 2: height, 3: width}}
    program = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    for size in ((12, 10), (max(5, mixer.min_grid), 20), (17, 9)):
        x = torch.randn(3, DIM, *size, dtype=torch.float64)
        torch.testing.assert_close(program(x), model(x), rtol=1e-7, atol=1e-9)


@every_mixer
def test_a_network_of_it_trains_and_keeps_what_it_is(name):
    torch.manual_seed(0)
    arguments = {"num_classes": 3, "mixer": name, "depths": (1, 1, 1, 1)}
    net = timm.create_model("soft_nano", **arguments)
    x = torch.rand(2, 3, 70, 64)
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    again = timm.create_model("soft_nano", **arguments).eval()
    again.load_state_dict(net.state_dict())
    net.eval()
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)
    other = timm.create_model("soft_nano", num_classes=3, mixer="softmax" if name != "softmax" else "soft")
    with pytest.raises(InputError, match=r"trained with|another model"):
        other.load_state_dict(net.state_dict())
