"""Whole models against the released code."""

import json

import pytest
import timm
import torch

from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER, from_released
from tests import golden_files
from tests.helpers import MAX_RELATIVE_ERROR, assert_no_worse_than

pytestmark = pytest.mark.usefixtures("device")


def released_model(name: str, dtype: torch.dtype):
    tensors, meta = golden_files.load(name)
    kwargs = json.loads(meta["kwargs"])
    del kwargs["mlp_ratios"]  # the released blocks ignore it
    model = timm.create_model(f"{name.removeprefix('model_')}_tiny", **kwargs).eval()
    model.load_state_dict(golden_files.below(tensors, "weight."))
    return model.to(dtype), tensors


@pytest.mark.parametrize("name", ["model_soft", "model_soft_norm"])
@pytest.mark.parametrize("i", [0, 1])
def test_logits_are_the_released_ones(name, i):
    (model, tensors), (exact_model, _) = (
        released_model(name, torch.float32),
        released_model(name, torch.float64),
    )
    x, golden = tensors[f"x{i}"], tensors[f"logits{i}"]
    with torch.no_grad():
        logits, exact = model(x), exact_model(x.double())
    assert_no_worse_than(logits, golden, exact)
    assert (logits - golden).abs().max() <= MAX_RELATIVE_ERROR * golden.abs().max()


def gradients(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model, tensors = released_model("model_soft", dtype)
    x = tensors["x0"][:1].to(dtype).requires_grad_()
    model(x).backward(tensors["grad_logits0"].to(dtype))
    return {"x": x.grad} | {name: p.grad for name, p in model.named_parameters()}


def test_gradients_are_the_released_ones():
    tensors, _ = golden_files.load("model_soft")
    golden = from_released(golden_files.below(tensors, "grad0.")) | {"x": tensors["grad_x0"]}
    ours, exact = gradients(torch.float32), gradients(torch.float64)
    assert len(golden) == 6
    for name, value in golden.items():
        assert_no_worse_than(ours[name], value, exact[name], name=name)
        assert (ours[name] - value).abs().max() <= MAX_RELATIVE_ERROR * value.abs().max(), name


def test_loading_normalised_weights_selects_their_solver():
    plain, _ = released_model("model_soft", torch.float32)
    normalised, _ = released_model("model_soft_norm", torch.float32)
    assert plain.solver.start == "rowsum"
    assert normalised.solver == RELEASED_NORMALIZED_SOLVER
    assert normalised.stages[0].blocks[0].attn.solver == RELEASED_NORMALIZED_SOLVER
