"""Exported programs: one for every size and batch, below and above the landmark budget, against eager."""

import pytest
import timm
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

import softmaxfree  # noqa: F401  registers the models

SIZES = [(2, 96, 96), (1, 70, 45), (3, 64, 130), (1, 128, 128), (2, 171, 260)]
START = {"below": (2, 96, 96), "above": (2, 320, 192)}
FEW = dict(name="newton", iters=6)  # which is quick to trace
NARROW = dict(
    depths=(1, 1, 1, 1),
    embed_dims=(8, 8, 16, 16),
    num_heads=(1, 1, 2, 2),
    landmark_grid=(8, 8),
    num_classes=5,
    solver=FEW,
)
MODELS = {
    "conv": {},
    "mean": dict(landmark_sampling="mean"),
    "random": dict(landmark_sampling="random", last_stage="softmax_free"),
    "first": dict(landmark_sampling="first"),
    "normalised": dict(normalize=True, solver=FEW | dict(ridge=0.0, start="halving")),
    "unbounded": dict(landmark_grid="unbounded"),
    "contrast": dict(contrast_window=9),
}
# an example on either side of the budget, which a program must not be tied to; the other samplings have one each
PAIRS = [(name, start) for name in ("conv", "normalised", "unbounded") for start in START]
PAIRS += [("random", "below"), ("first", "above"), ("contrast", "below")]
PAIRS = [("mean", "above"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS)]


def photograph(batch: int, height: int, width: int) -> Tensor:
    """Noise would hide the error of a wrong landmark: all of them would be alike."""
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255
    image = F.interpolate(image, size=(height, width), mode="bilinear", antialias=True)
    return torch.cat([image * (1 - 0.2 * i) for i in range(batch)]).sub(0.45).div(0.22)


def network(**kwargs) -> torch.nn.Module:
    model = timm.create_model("soft_nano", **(NARROW | kwargs)).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.trunc_normal_(p, std=0.1)
    return model


def shapes() -> dict:
    dim = torch.export.Dim
    return {0: dim("batch", min=1, max=64), 2: dim("height", min=33, max=4096), 3: dim("width", min=33, max=4096)}


def assert_same(out, expected) -> None:
    for a, b in zip(out, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-4 * (b.max() - b.min())


@torch.no_grad()
@pytest.mark.parametrize(("name", "start"), PAIRS)
def test_one_program_for_all_sizes(name: str, start: str):
    model = network(**MODELS[name])
    program = torch.export.export(model, (photograph(*START[start]),), dynamic_shapes={"x": shapes()}).module()
    for size in SIZES:
        x = photograph(*size)
        assert_same([program(x)], [model(x)])


@torch.no_grad()
@pytest.mark.slow
def test_feature_maps():
    model = timm.create_model("soft_nano", features_only=True, **NARROW).eval()
    program = torch.export.export(model, (photograph(2, 96, 96),), dynamic_shapes={"x": shapes()}).module()
    for size in SIZES:
        x = photograph(*size)
        assert_same(program(x), model(x))


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    model, file = network(), tmp_path / "model.onnx"
    example = (photograph(2, 96, 96),)
    torch.onnx.export(model, example, file, dynamo=True, dynamic_shapes={"x": shapes()}, verbose=False)
    session = runtime.InferenceSession(file)
    for size in SIZES:
        x = photograph(*size)
        assert_same([torch.from_numpy(z) for z in session.run(None, {"x": x.numpy()})], [model(x)])
