"""`pretrained=True`: the authors' files are fetched, checked, converted and kept."""

import hashlib
import json
import logging
import sys

import pytest
import timm
import torch
from safetensors import safe_open

from softmaxfree import ops
from softmaxfree.models.released import RELEASED_NORMALIZED_SOLVER
from tests import golden_files
from tests.models.downloads import drive
from tests.models.downloads.authors import PUBLISHED, file_of, id_of, left, refusal, url_of


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "tiny" not in name else ()) for name in PUBLISHED]
)
def test_the_authors_file_is_fetched_checked_converted_and_kept(name, server, cache, monkeypatch):
    data, weights = file_of(name)
    server.content[id_of(name)] = data
    server.behave = drive.direct if name == "soft_tiny" else drive.confirmed
    model = timm.create_model(name, pretrained=True).eval()

    for parameter in ("head.weight", "patch_embed1.proj.0.weight", "block3.1.att.ff1.weight"):
        ours = model.get_parameter(
            parameter.replace("patch_embed1.proj.0", "stages.0.embed.0.conv").replace(
                "block3.1.att.ff1", "stages.2.blocks.1.mlp.fc1"
            )
        )
        assert torch.equal(ours, weights[parameter])
    assert sum(p.numel() for p in model.parameters()) == sum(
        value.numel() for key, value in weights.items() if not key.endswith(("running_mean", "running_var", "tracked"))
    )
    assert model.solver == (RELEASED_NORMALIZED_SOLVER if "norm" in name else ops.Newton())

    assert left(cache) == [f"{name}.json", f"{name}.safetensors"]
    notes = json.loads((cache / f"{name}.json").read_text())
    assert notes == {"url": url_of(name), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with safe_open(cache / f"{name}.safetensors", "pt") as file:
        assert file.metadata()["architecture"] == name

    # from here on neither network nor gdown
    asked = len(server.asked)
    monkeypatch.setitem(sys.modules, "gdown", None)
    again = timm.create_model(name, pretrained=True).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert len(server.asked) == asked


def test_the_model_is_the_one_that_the_file_alone_makes(server, cache, tmp_path):
    (tmp_path / "SOFT_Tiny.pth").write_bytes(server.content[id_of("soft_tiny")])
    by_hand = timm.create_model("soft_tiny", checkpoint_path=str(tmp_path / "SOFT_Tiny.pth")).eval()
    model = timm.create_model("soft_tiny.fudan_in1k", pretrained=True).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), by_hand(x))
    assert model._model_args == by_hand._model_args


def test_what_timm_does_with_pretrained_weights_it_does_with_these(server, cache):
    weights = file_of("soft_tiny")[1]
    conv = weights["patch_embed1.proj.0.weight"]

    grey = timm.create_model("soft_tiny", pretrained=True, num_classes=5, in_chans=1)
    assert grey.head.weight.shape == (5, 512)
    torch.testing.assert_close(grey.stages[0].embed[0].conv.weight, conv.sum(1, keepdim=True))

    headless = timm.create_model("soft_tiny", pretrained=True, num_classes=0).eval()
    x = torch.rand(1, 3, 64, 64)
    assert headless(x).shape == (1, 512)

    features = timm.create_model("soft_tiny", pretrained=True, features_only=True, out_indices=(1, 2)).eval()
    whole = timm.create_model("soft_tiny", pretrained=True).eval()
    with torch.no_grad():
        maps = whole.forward_intermediates(x, [1, 2], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(features(x), maps, strict=True))

    with pytest.warns(UserWarning, match="position tables are resampled"):
        small = timm.create_model("soft_tiny", pretrained=True, img_size=64).eval()
    assert small.stages[0].pos_embed.table.shape[1] == 16 * 16
    with torch.no_grad():
        torch.testing.assert_close(small(x), whole(x), rtol=1e-4, atol=1e-5)

    with pytest.warns(UserWarning, match="position tables are resampled"):
        dilated = timm.create_model("soft_tiny", pretrained=True, features_only=True, output_stride=16)
    assert dilated.feature_info.reduction() == [4, 8, 16, 16]

    named = timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay={"crop_pct": 1.0})
    assert named.pretrained_cfg["crop_pct"] == 1.0
    assert len(server.asked) == 1


def test_the_path_of_the_cache_does_not_travel_with_the_model(server, cache, tmp_path):
    model = timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay={"crop_pct": 1.0})
    features = timm.create_model("soft_tiny", pretrained=True, features_only=True)
    for config in (model.pretrained_cfg, model.default_cfg, features.pretrained_cfg, features.model.pretrained_cfg):
        assert "file" not in config
        assert config["url"] == url_of("soft_tiny")
    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True)
    assert str(cache) not in (tmp_path / "saved" / "config.json").read_text()
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    assert torch.equal(again.head.weight, model.head.weight)
    assert len(server.asked) == 1


def test_the_download_is_logged(server, cache, caplog):
    with caplog.at_level(logging.INFO, logger="softmaxfree"):
        timm.create_model("soft_tiny", pretrained=True)
        timm.create_model("soft_tiny", pretrained=True)
    said = [record.message for record in caplog.records if record.name.startswith("softmaxfree")]
    assert said == [f"Downloading the weights of soft_tiny from {url_of('soft_tiny')}"]


def test_another_source_of_weights_is_taken_as_timm_takes_it(server, cache, tmp_path):
    golden_files.release(tmp_path / "a.pth", "soft_tiny")
    overlay = {"file": str(tmp_path / "a.pth")}
    model = timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
    weights = {"state_dict": model.state_dict()}
    timm.create_model("soft_tiny", pretrained=True, pretrained_cfg_overlay=weights)
    timm.create_model("soft_tiny")
    assert server.asked == []
    assert not cache.exists()


@pytest.mark.parametrize("name", ["soft_nano", "soft_small", "soft_huge", "soft_norm_huge"])
def test_a_model_without_published_weights_says_so(name, cache):
    message = refusal(name)
    assert f"the authors published no weights of {name}, only of {', '.join(PUBLISHED)}" in message
    assert "checkpoint_path='FILE'" in message
