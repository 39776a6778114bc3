"""SOFT-Small has the depths of its file: the paper's, or those that were released."""

import io

import pytest
import timm
import torch

from softmaxfree.models.conversion import convert
from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER
from tests import golden_files
from tests.models.downloads.authors import file_of, id_of, refusal

SHAPES = golden_files.released_shapes()


def shallow_small():
    """A file of SOFT++-Small with the depths of the paper."""
    with torch.device("meta"):
        deep = set(SHAPES["soft_norm_small"])
    kept = {
        k: s
        for k, s in SHAPES["soft_norm_small"].items()
        if not (k.startswith("block3.") and int(k.split(".")[1]) >= 7)
    }
    assert len(kept) < len(deep)
    stream = io.BytesIO()
    torch.save({"state_dict": {k: torch.rand(s) * 0.05 for k, s in kept.items()}}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("depths", [(1, 3, 20, 4), (1, 3, 7, 4)])
def test_small_has_the_depths_of_the_file(depths, server, cache, tmp_path):
    data = file_of("soft_norm_small")[0] if depths[2] == 20 else shallow_small()
    server.content[id_of("soft_norm_small")] = data
    model = timm.create_model("soft_norm_small", pretrained=True, num_classes=3).eval()
    assert tuple(len(stage.blocks) for stage in model.stages) == depths
    assert model.solver == RELEASED_NORMALIZED_SOLVER
    assert timm.create_model("soft_norm_small", pretrained=True, depths=list(depths)).depths == depths
    features = timm.create_model("soft_norm_small", pretrained=True, features_only=True)
    assert features.model.depths == depths

    other = (1, 3, 27 - depths[2], 4)
    message = refusal("soft_norm_small", depths=other, num_classes=3)
    assert f"depths={other} contradicts the weights of soft_norm_small, which have {depths}" in message

    # where the model is saved, its depths are too
    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert timm.create_model("soft_norm_small").depths == (1, 3, 7, 4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", None])
def test_depths_are_those_of_a_given_source_too(suffix, cache, tmp_path):
    """Where the head is another, timm would leave out what does not fit, and say nothing."""
    weights = golden_files.released_weights("soft_norm_small")
    file = tmp_path / f"SOFT_Small_norm{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": weights}, file)
    elif suffix:
        convert(weights, "soft_norm_small", {"depths": (1, 3, 20, 4)}, file)
    start = {"file": str(file)} if suffix else {"state_dict": weights}
    model = timm.create_model("soft_norm_small", pretrained=True, pretrained_cfg_overlay=start, num_classes=3)
    assert torch.equal(model.stages[2].blocks[19].attn.q.weight, weights["block3.19.att.mha.W_q.weight"])
    assert "contradicts" in refusal("soft_norm_small", pretrained_cfg_overlay=start, depths=(1, 3, 7, 4), num_classes=3)


def test_depths_that_contradict_any_file_are_refused(server, cache):
    assert "depths=(1, 2, 4, 2) contradicts" in refusal("soft_tiny", depths=(1, 2, 4, 2), num_classes=3)
