"""What weights are tied to comes back with them, on every route, or loading is refused."""

import copy
import json

import pytest
import safetensors.torch
import timm
import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from softmaxfree.models.record import NAME, decode, encode
from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER
from softmaxfree.ops import Cholesky, Newton
from tests import golden_files

NARROW = dict(embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 2, 4), num_classes=5)


def nano(**arguments):
    return timm.create_model("soft_nano", **{**NARROW, **arguments}).eval()


@pytest.fixture(scope="module")
def released():
    """A small normalised model with the authors' weights, and its logits."""
    tensors, about = golden_files.load("model_soft_norm")
    arguments = json.loads(about["kwargs"])
    del arguments["mlp_ratios"]
    model = timm.create_model("soft_norm_tiny", **arguments).eval()
    model.load_state_dict(golden_files.below(tensors, "weight."))
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return arguments, model, image, model(image)


def through_torch(model, folder):
    torch.save(model.state_dict(), folder / "a.pth")
    return torch.load(folder / "a.pth", weights_only=True)


def through_safetensors(model, folder):
    safetensors.torch.save_file(model.state_dict(), folder / "a.safetensors")
    return safetensors.torch.load_file(folder / "a.safetensors")


def through_timms_average(model, folder):
    average = ModelEmaV3(model, decay=0.99996)
    for _ in range(5):
        average.update(model)
    return average.module.state_dict()


def through_torchs_plain_average(model, folder):
    average = AveragedModel(model, use_buffers=True)
    for _ in range(5):
        average.update_parameters(model)
    return average.module.state_dict()


def through_torchs_average(model, folder):
    """Which rounds integers: 7 becomes 6."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99996), use_buffers=True)
    for _ in range(5):
        average.update_parameters(model)
    return average.module.state_dict()


def through_a_prefix(model, folder):
    state = torch.nn.ModuleDict({"net": model}).state_dict()
    holder = torch.nn.ModuleDict({"net": copy.deepcopy(model)})
    holder["net"].set_solver("newton")
    holder.load_state_dict(state)
    return holder["net"].state_dict()


def through_floats(model, folder):
    return {name: weight.double() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize(
    "route",
    [
        through_torch,
        through_safetensors,
        through_timms_average,
        through_torchs_average,
        through_torchs_plain_average,
        through_a_prefix,
        through_floats,
    ],
)
def test_logits_after_any_route_are_those_before(route, released, tmp_path):
    arguments, model, image, logits = released
    new = timm.create_model("soft_norm_tiny", **arguments).eval()
    new.load_state_dict(route(model, tmp_path))
    assert new.solver == RELEASED_NORMALIZED_SOLVER
    with torch.no_grad():
        assert torch.equal(new(image), logits)


def test_half_precision_keeps_the_record(released):
    arguments, model, _, _ = released
    new = timm.create_model("soft_norm_tiny", **arguments)
    new.load_state_dict(copy.deepcopy(model).half().state_dict())
    assert new.solver == RELEASED_NORMALIZED_SOLVER


def test_through_timms_checkpoint_path_and_folders(released, tmp_path):
    arguments, model, image, logits = released
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors")
    timm.models.save_for_hf(model, str(tmp_path / "folder"), safe_serialization=True)
    overlay = {"file": str(tmp_path / "a.safetensors"), "num_classes": model.num_classes}
    for new in (
        timm.create_model("soft_norm_tiny", **arguments, checkpoint_path=str(tmp_path / "a.safetensors")),
        timm.create_model("soft_norm_tiny", **arguments, pretrained=True, pretrained_cfg_overlay=overlay),
        timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True),
    ):
        with torch.no_grad():
            assert torch.equal(new.eval()(image), logits)


def test_features_take_the_record_too(released):
    arguments, model, image, _ = released
    features = timm.create_model("soft_norm_tiny", features_only=True, **arguments).eval()
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items() if not name.startswith("head.")}
    features.load_state_dict(weights)
    with torch.no_grad():
        maps = model.forward_intermediates(image, intermediates_only=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(features(image), maps, strict=True))


def test_solver_and_budget_set_by_hand_are_saved():
    trained, image = nano(), torch.randn(1, 3, 96, 96)
    trained.set_solver(Newton(iters=3))
    trained.set_landmark_grid((2, 3))
    new = nano()
    new.load_state_dict(trained.state_dict())
    assert (new.solver, new.landmark_grid) == (Newton(iters=3), (2, 3))
    with torch.no_grad():
        assert torch.equal(new(image), trained(image))


def test_a_load_that_fails_changes_nothing(released):
    arguments, model, _, _ = released
    weights = dict(model.state_dict())
    del weights["head.bias"]
    new = timm.create_model("soft_norm_tiny", **arguments)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ValueError, match="1 weights missing"):
        new.load_state_dict(weights)
    torch.testing.assert_close(new.state_dict(), before, rtol=0, atol=0)
    assert new.solver == Newton()
    weights = {f"net.{name}": weight for name, weight in model.state_dict().items()}
    weights["net.stages.3.norm.weight"] = torch.ones(7)
    with pytest.raises(RuntimeError, match=r"size mismatch"):
        torch.nn.ModuleDict({"net": new}).load_state_dict(weights)
    assert new.solver == Newton()


@pytest.mark.parametrize(
    ("trained", "made"),
    [
        (dict(normalize=True), {}),
        (dict(num_heads=(1, 2, 2, 2)), {}),  # of the last stage, whose weights have no size by heads
        (dict(global_pool="avg"), {}),
        (dict(output_stride=16), {}),
        (dict(contrast_window=5), dict(contrast_window=7)),
        (dict(stem_stride=8), {}),
        (dict(landmark_sampling="first"), dict(landmark_sampling="random")),
        (dict(landmark_sampling="mean", sr_ratios=(2, 2, 1, 1)), dict(landmark_sampling="mean")),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_another_function_are_refused(trained, made, strict):
    model, weights = nano(**made), nano(**trained).state_dict()
    with pytest.raises(ValueError, match=rf"trained with {next(reversed(trained)).replace('sr_ratios', 'ratio')}="):
        model.load_state_dict(weights, strict=strict)
    with pytest.raises(RuntimeError, match=rf"trained with {next(reversed(trained)).replace('sr_ratios', 'ratio')}="):
        torch.nn.ModuleList([model]).load_state_dict({f"0.{name}": w for name, w in weights.items()}, strict=strict)


def test_another_choice_by_hand_is_undone_with_a_warning():
    model = nano(solver="cholesky")
    with pytest.warns(UserWarning, match=r"trained with solver=.*newton.*set_solver\(\)"):
        model.load_state_dict(nano().state_dict())
    assert model.solver == Newton()
    model.set_solver(Cholesky())
    assert decode(model.state_dict()[NAME])["mixers"][0]["solver"] == Cholesky().to_dict()


def test_weights_without_a_record_load_and_say_so():
    weights = {name: weight for name, weight in nano().state_dict().items() if name != NAME}
    model = nano()
    with pytest.warns(UserWarning, match=r"do not tell the solver.*its default then, Newton\(.*\), is used"):
        model.load_state_dict(weights)
    assert (model.solver, model.landmark_grid) == (Newton(), (16, 16))
    chosen = nano(solver="cholesky")
    chosen.load_state_dict(weights)
    assert chosen.solver == Cholesky()


def test_position_tables_keep_their_shape():
    """A table of 8 x 32 has as many rows as one of 16 x 16."""
    wide, square, image = nano(img_size=(32, 128)), nano(img_size=64), torch.randn(1, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"resampled, from \(8, 32\) to \(16, 16\) and"):
        square.load_state_dict(wide.state_dict())
    with torch.no_grad():
        assert torch.equal(square(image), wide(image))


def test_a_refused_load_changes_nothing_at_any_depth():
    trained, model = nano(normalize=True, num_classes=7), nano()
    before = copy.deepcopy(model.state_dict())
    weights = trained.state_dict()
    with pytest.raises(ValueError, match=r"normalize|size mismatch"):
        model.load_state_dict(weights, strict=False)
    with pytest.raises(RuntimeError, match="normalize"):
        torch.nn.ModuleList([model]).load_state_dict({f"0.{name}": w for name, w in weights.items()})
    with pytest.raises(ValueError, match=r"size mismatch: 2 weights.*head.weight is \(7, 32\), the model's \(5, 32\)"):
        model.load_state_dict(nano(num_classes=7).state_dict(), strict=False)
    with pytest.raises(ValueError, match="landmark_grid"):
        model.set_landmark_grid((0, 0))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.landmark_grid == (8, 8)


def test_a_record_without_the_attention_it_is_of_sets_nothing():
    trained, model = nano(), nano()
    trained.set_solver("cholesky")
    state = trained.state_dict()
    model.load_state_dict({name: state[name] for name in (NAME, "head.weight", "head.bias")}, strict=False)
    assert model.solver == Newton()


def test_a_damaged_record_is_refused():
    for damaged in (torch.ones(8192), torch.rand(3), encode({"num_heads": 3}), encode({"grids": "8"})):
        with pytest.raises(ValueError, match="'record' cannot be read"):
            nano().load_state_dict(nano().state_dict() | {NAME: damaged})


def test_a_record_of_any_length():
    record = {"names": ["x" * 100] * 30}
    assert decode(encode(record)) == record
    assert len(encode(record)) % 8192 == 0


def test_a_solver_and_a_budget_come_with_every_mixer_that_has_them():
    own = {"embed_dim": 16, "num_heads": 2, "depth": 1, "num_classes": 3, "mixer": "softn"}
    made = {"solver": {"name": "cholesky", "ridge": 0.3}, "landmark_grid": (3, 3)}
    trained = timm.create_model("soft_vit_tiny", mixer_args=made, **own).eval()
    new = timm.create_model("soft_vit_tiny", **own).eval()
    new.load_state_dict(trained.state_dict())
    assert (new.solver, new.landmark_grid) == (Cholesky(ridge=0.3), (3, 3))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(new(image), trained(image))
    for grid in (None, "unbounded"):
        with pytest.raises(ValueError, match="landmark_grid must be a whole number for each axis"):
            new.set_landmark_grid(grid)


def test_weights_without_a_record_for_a_mixer_without_a_solver():
    own = {"embed_dim": 16, "num_heads": 2, "depth": 1, "num_classes": 3, "mixer": "gaussian"}
    model = timm.create_model("soft_vit_tiny", **own)
    model.load_state_dict(dict(model.named_parameters()), strict=False)
    assert model.solver is None


@pytest.mark.parametrize("made", [dict(stem_stride=8), dict(block_args={"act": "relu"})])
def test_what_an_older_record_does_not_tell_was_the_usual(made):
    """Shapes tell neither: weights of earlier versions and the authors' would load into another function."""
    weights = nano().state_dict()
    old = {key: value for key, value in decode(weights[NAME]).items() if key not in ("stem_stride", "block_args")}
    weights[NAME] = encode(old)
    nano().load_state_dict(weights)
    for model in (nano(**made), torch.nn.ModuleList([nano(**made)])):
        own = weights if not isinstance(model, torch.nn.ModuleList) else {f"0.{k}": w for k, w in weights.items()}
        with pytest.raises((ValueError, RuntimeError), match=rf"trained with {next(iter(made))}="):
            model.load_state_dict(own)
    first = {key: value for key, value in weights.items() if key != NAME}  # of version 0.1.0
    with (
        pytest.warns(UserWarning, match="do not tell the solver"),
        pytest.raises(ValueError, match=rf"trained with {next(iter(made))}="),
    ):
        nano(**made).load_state_dict(first)
