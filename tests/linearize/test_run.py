"""A run on tiny networks: it learns, goes on after a stop as if there had been none, and refuses what it cannot do."""

import copy
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import softmaxfree  # noqa: F401  registers `linearized`
from softmaxfree.errors import InputError
from softmaxfree.linearize import Settings, any_size, find_pictures, linearize, load_measures
from softmaxfree.models.exchange import exchange

ARGUMENTS = {"maps": True, "exact_keys": 2, "landmark_grid": [2, 2]}
SETTINGS = {
    "size": (32,), "mixer_args": ARGUMENTS, "batch_size": 2, "block_steps": 4, "steps": 12, "block_images": 4,
    "measured": 3, "probe_images": 8,
}  # fmt: skip


def tiny(**more) -> torch.nn.Module:
    torch.manual_seed(0)
    arguments = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", **(arguments | more)).eval()
    for name, weight in model.named_parameters():
        if "qkv.weight" in name:
            weight.data.mul_(15)  # else each query attends to all keys alike, and there is nothing to learn
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures in folders of two classes."""
    root, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, shade in (("dark", 60), ("light", 190)):
        (root / name).mkdir()
        for i in range(8):
            pixels = np.clip(numbers.normal(shade, 50, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def run(folder, out, stop: int | None = None, teacher=None, **more) -> list[str]:
    """Runs, or stops after so many lines as a signal would."""
    settings = Settings(**(SETTINGS | more))
    lines = []
    for line in linearize(teacher or tiny(), find_pictures(folder, settings.batch_size), settings, out):
        lines.append(line)
        if len(lines) == stop:
            break
    return lines


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "student"
    return out, run(folder, out)


def weights(out) -> dict[str, torch.Tensor]:
    return timm.create_model(f"local-dir:{out}", pretrained=True).state_dict()


def test_a_student_is_written_that_timm_loads(finished):
    out, lines = finished
    student = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert [type(each).name for each in (block.attn.mixer for block in student.blocks)] == ["softn", "softn"]
    told = load_measures(out)
    assert told["teacher"] == "vit_tiny_patch16_224"
    assert [row["stage"] for row in told["measures"]] == ["swap", "blocks", "features"]
    assert all(0 < row["raw"] <= 1 and -1 <= row["between"] <= 1 for row in told["measures"])
    assert all(len(row["maps"]) == 2 for row in told["measures"])
    assert told["costs"][0]["student_mib"] > 0
    assert any(line.startswith("block 1") for line in lines)
    assert not (out / "activations").exists()


def test_the_teacher_stays_as_it_is(folder, tmp_path):
    teacher = tiny()
    before = copy.deepcopy(teacher.state_dict())
    settings = Settings(**(SETTINGS | {"steps": 2, "block_steps": 1}))
    list(linearize(teacher, find_pictures(folder, 2), settings, tmp_path / "out"))
    assert type(teacher) is timm.models.VisionTransformer
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_what_grew_is_reverted_and_what_learned_is_kept(finished):
    errors = load_measures(finished[0])["errors"]
    assert len(errors) == 2
    for _, swapped, learned, kept in errors:
        assert kept == (learned <= swapped)
    assert any(learned < swapped for _, swapped, learned, _ in errors)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(folder, finished, tmp_path, stop):
    out = tmp_path / "out"
    run(folder, out, stop)
    lines = run(folder, out)
    assert lines[0].startswith("goes on") or stop == 1
    one, other = weights(finished[0]), weights(out)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=0, msg=name)
    assert run(folder, out)[-1].startswith("written")  # a finished one is not done again


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_labels_give_it_a_head_also_after_a_stop(folder, tmp_path, name):
    few = {"label_steps": 12, "steps": 1, "block_steps": 0, "train": "attention"}
    torch.manual_seed(0)
    own = timm.create_model(name, embed_dim=16, depth=1, num_heads=2, img_size=32, patch_size=8, num_classes=2)
    lines = run(folder, tmp_path / "out", teacher=copy.deepcopy(own), **few)
    at = next(i for i, line in enumerate(lines) if line.startswith("labels     step 10"))
    run(folder, tmp_path / "stopped", at + 1, copy.deepcopy(own), **few)
    torch.manual_seed(7)
    run(folder, tmp_path / "stopped", None, copy.deepcopy(own), **few)
    one, other = weights(tmp_path / "out"), weights(tmp_path / "stopped")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(one["head.weight"], own.head.weight)  # its two classes were others
    student = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert student.pretrained_cfg["label_names"] == ["dark", "light"]
    pictures = find_pictures(folder, 2)
    with torch.no_grad():
        right = [int(student(pictures.batch([i], 32, student)).argmax()) == pictures.labels[i] for i in pictures.held]
    assert load_measures(tmp_path / "out")["measures"][-1]["head"] == sum(right) / len(right)


def test_a_head_that_learned_nothing_keeps_the_names_of_its_classes(folder, tmp_path):
    teacher = tiny(num_classes=3, pretrained_cfg_overlay={"label_names": ["a", "b", "c"]})
    run(folder, tmp_path / "out", teacher=teacher, steps=0, block_steps=0)
    student = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert student.pretrained_cfg["label_names"] == ["a", "b", "c"]


def test_grey_images_and_one_held_out_picture(tmp_path):
    images = list(np.random.default_rng(0).integers(0, 256, (6, 36, 40), dtype=np.uint8))
    settings = Settings(**(SETTINGS | {"steps": 1, "block_steps": 0}))
    lines = list(linearize(tiny(in_chans=1), find_pictures(images, 2), settings, tmp_path / "out"))
    assert lines[0].startswith("swap")
    assert "centred" not in lines[0]  # it takes two
    told = json.loads((tmp_path / "out" / "measures.json").read_text(), parse_constant=pytest.fail)
    assert told["measures"][0]["between"] is None


def test_features_beyond_half_precision(folder, tmp_path):
    teacher = tiny()
    teacher.norm.weight.data.mul_(1e6)
    run(folder, tmp_path / "out", teacher=teacher, steps=0, block_steps=0)
    assert load_measures(tmp_path / "out")["measures"][0]["raw"] > 0.5


def test_any_size_of_a_teacher_of_one(tmp_path):
    own = tiny()
    free = any_size(own)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(free(x), own(x), rtol=0, atol=0)
    assert any_size(free) is free
    images = list(np.random.default_rng(0).integers(0, 256, (6, 50, 50, 3), dtype=np.uint8))
    settings = Settings(**(SETTINGS | {"size": (48, 32), "steps": 0, "mixer": "softmax", "mixer_args": None}))
    list(linearize(free, find_pictures(images, 2), settings, tmp_path / "out"))
    student = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    for size in (32, 48, 40):
        x = torch.randn(1, 3, size, size)
        torch.testing.assert_close(student(x), free(x), rtol=1e-5, atol=1e-6)


def test_folders_of_splits_are_no_classes(tmp_path):
    for place in ("Train/dark", "Train/light", "val/light"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (8, 8)).save(tmp_path / place / f"{i}.png")
    pictures = find_pictures(tmp_path, 1)
    assert pictures.class_names == ["dark", "light"]
    assert sorted(pictures.labels) == [0, 0, 1, 1, 1, 1]


def test_what_a_mixer_gets_by_default_depends_on_the_size():
    settings = Settings(size=(224,))
    assert settings.arguments(range(12), 12, 16) == {"maps": True, "near": 1}
    large = settings.arguments([0, 4, 5], 12, 37)
    assert [(own["near"], own["landmark_grid"]) for own in large] == [(0, [8, 8]), (1, [8, 8]), (0, [8, 8])]
    assert settings.arguments([0], 4, 0) == {"maps": True, "near": 0}
    assert Settings(size=(224,), mixer="mala").arguments([0], 4, 16) == {}
    assert Settings(size=(224,), mixer_args={"near": 2}).arguments([0], 4, 37) == {"near": 2}


def test_a_pyramid_and_rotary_positions_learn_too(folder, tmp_path):
    few = {**SETTINGS, "steps": 2, "block_steps": 2, "mixer_args": None}
    small = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    pyramid = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "num_classes": 0}
    for name, size, own in (
        ("pvt_v2_b0", 64, pyramid),
        ("vit_base_patch16_siglip_224", 48, small | {"img_size": 48}),  # whose head has an attention, too
        ("vit_small_patch16_dinov3", 48, small | {"img_size": 48}),
        ("vit_small_patch16_rope_mixed_224", 48, small | {"img_size": 48}),
    ):
        out = tmp_path / name
        settings = Settings(**(few | {"size": (size,)}))
        lines = list(linearize(timm.create_model(name, **own), find_pictures(folder, 2), settings, out))
        assert lines[-1].startswith("written")
        assert load_measures(out)["measures"][-1]["raw"] > 0.9


def test_bad_input_leaves_nothing_behind(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="size must be a multiple of 8 for this model, got 30"):
        run(folder, out, size=(30,))
    with pytest.raises(InputError, match="size: the model does not take 64 pixels"):
        run(folder, out, size=(64,))
    with pytest.raises(InputError, match=r"data must have \d+ images or more, a batch of 16 .+ got 16"):
        run(folder, out, batch_size=16)
    with pytest.raises(InputError, match="blocks must be different numbers from 0 to 1"):
        run(folder, out, blocks=[2])
    with pytest.raises(InputError, match="there is no such folder"):
        run(tmp_path / "nowhere", out)
    with pytest.raises(InputError, match="train must be mixer"):
        run(folder, out, train="everything")
    with pytest.raises(InputError, match="size must be different numbers"):
        run(folder, out, size=(32, 32))
    with pytest.raises(InputError, match="label_steps needs data with labels"):
        run(folder / "dark", out, label_steps=1)
    with pytest.raises(InputError, match="is exchanged already: give its teacher"):
        run(folder, out, teacher=exchange(tiny(), "softn"))
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "light" / "3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"3\.png cannot be read"):
        run(tmp_path / "data", out)
    assert not out.exists()


def test_steps_that_were_too_large_are_told(folder, tmp_path):
    with pytest.raises(InputError, match="lr: smaller steps are needed: after features"):
        run(folder, tmp_path / "out", lr=1e30, block_steps=0)


def test_a_folder_of_another_run_is_refused(folder, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "out")
    with pytest.raises(InputError, match="holds a run with steps 12, this one has 13"):
        run(folder, tmp_path / "out", steps=13)
    with pytest.raises(InputError, match="holds a run with other weights"):
        run(folder, tmp_path / "out", teacher=tiny(qkv_bias=False))
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "light" / "3.png").rename(tmp_path / "data" / "light" / "9.png")
    with pytest.raises(InputError, match="holds a run with other pictures"):
        run(tmp_path / "data", tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="is neither empty nor a run of linearize"):
        run(folder, tmp_path / "other")


def test_other_pictures_of_the_same_names_and_sizes_are_others(tmp_path):
    digests = set()
    for colour in ("red", "blue", "red"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        for i in range(4):
            Image.new("RGB", (20, 20), colour).save(tmp_path / "photos" / f"{i}.bmp")
        digests.add(find_pictures(str(tmp_path / "photos"), 1).digest())
    assert len(digests) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_learns_the_same_and_goes_on(folder, tmp_path):
    run(folder, tmp_path / "cpu", label_steps=4)
    run(folder, tmp_path / "gpu", stop=6, teacher=tiny().cuda(), label_steps=4)
    run(folder, tmp_path / "gpu", teacher=tiny().cuda(), label_steps=4)
    rows = [load_measures(tmp_path / device)["measures"] for device in ("cpu", "gpu")]
    for ours, theirs in zip(*rows, strict=True):
        assert theirs["raw"] == pytest.approx(ours["raw"], abs=1e-3)
