"""Files are the models that they were made of: each format, output and precision, at sizes that were not exported."""

import json

import onnx
import onnxruntime
import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.errors import InputError
from softmaxfree.export import checking, export, program_of
from softmaxfree.export.programs import _with_exact_pooling
from softmaxfree.models.detection import Detector
from softmaxfree.models.segmentation import Segmenter

SMALL = dict(embed_dim=16, num_heads=2, depth=1, patch_size=8, num_classes=5)
CONFIG = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
NAMES = ["crack", "Zelle", "ok", "d", "e"]


def small():
    torch.manual_seed(0)
    own = {"landmark_grid": (3, 3), "ratio": 2, "solver": {"name": "newton", "iters": 4}}  # few, which is quick
    net = timm.create_model("soft_vit_tiny", mixer_args=own, **SMALL).eval()
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.trunc_normal_(p, std=0.1)
    return net


@pytest.mark.slow
def test_onnx_with_a_mask_tells_classes_and_preparation(tmp_path):
    done = export(small(), tmp_path / "a.onnx", CONFIG, NAMES, mask=True)
    assert done.inputs == ("x", "mask")
    assert {(each.batch, each.where) for each in done.differences} == {
        (b, w) for b in (1, 2) for w in ("below", "at", "above")
    }
    assert all(each.height != each.width for each in done.differences)
    assert max(each.value for each in done.differences) <= 1e-4
    told = {each.key: each.value for each in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(told["class_names"]) == NAMES
    assert (json.loads(told["mean"]), json.loads(told["std"])) == ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    assert json.loads(told["input_size"]) == [3, 64, 64]
    assert told["architecture"] == "soft_vit_tiny"
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_torch_export_of_feature_maps(tmp_path):
    done = export(small(), tmp_path / "a.pt2", CONFIG, features=True)
    assert (done.outputs, done.smallest) == (("map0",), 33)
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["task"] == "features"
    x = torch.rand(3, 3, 41, 50)
    for own, expected in zip(program(x), small().forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_half_keeps_kernel_and_inverse_in_float32(tmp_path):
    net = small()
    done = export(net, tmp_path / "a.onnx", CONFIG | {"input_size": (3, 24, 32)}, half=True)
    assert done.limit == 2e-2
    # images that were smaller in training than what torch.export takes: ONNX has no such limit
    assert [(each.batch, each.height, each.width) for each in done.differences[6:]] == [(1, 24, 32), (2, 24, 32)]
    assert done.smallest == 24
    assert next(net.parameters()).dtype == torch.float32
    model = onnx.load(tmp_path / "a.onnx")
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    weights = [each for each in model.graph.initializer if len(each.dims) >= 2 and "record" not in each.name]
    assert {kinds[each.name] for each in weights if each.name.endswith("weight")} == {onnx.TensorProto.FLOAT16}
    types = {each.name: each.type.tensor_type.elem_type for each in model.graph.value_info}
    exps = [types[node.output[0]] for node in model.graph.node if node.op_type == "Exp"]
    assert exps
    assert set(exps) == {onnx.TensorProto.FLOAT}


def test_int8_leaves_kernel_and_inverse_alone_and_tells_its_cost(tmp_path, caplog):
    from PIL import Image
    from skimage import data

    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(data, name)()).resize((80, 64)).save(tmp_path / f"{name}.png")
    config = CONFIG | {"interpolation": "bilinear", "crop_pct": 1.0}
    done = export(small(), tmp_path / "a.onnx", config, NAMES, calibration=tmp_path)
    assert done.cost.pictures == 3
    assert not [each for each in caplog.records if each.name == "root"]  # onnxruntime's advice
    assert done.cost.quantised > 0
    assert done.cost.kept >= 8  # two products in each Newton step alone
    assert 0 <= done.cost.agreement <= 1
    model = onnx.load(tmp_path / "a.onnx")
    made = {out: node for node in model.graph.node for out in node.output}
    ops = [
        [made.get(i).op_type if i in made else None for i in n.input] for n in model.graph.node if n.op_type == "MatMul"
    ]
    assert sum("DequantizeLinear" not in each for each in ops) >= done.cost.kept - 5
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert session.run(None, {"x": torch.rand(2, 3, 50, 77).numpy()})[0].shape == (2, 5)
    told = {each.key for each in model.metadata_props}
    assert "class_names" in told


@pytest.mark.slow
def test_segmenter(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    args = dict(embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1), mixer="elu_linear")
    net = Segmenter("semantic_fpn", "soft_nano", 3, model_args=args, head_args="auto").eval()
    x = torch.rand(2, 3, 70, 45)
    own = net.forward_batch((x - net.mean) / net.std)
    torch.testing.assert_close(own, torch.stack(net(x)), rtol=1e-4, atol=1e-5)
    done = export(net, tmp_path / "a.pt2", CONFIG, NAMES[:3])
    assert done.outputs == ("logits",)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_adaptive_pooling_is_exact_at_every_size(tmp_path):
    class Pools(torch.nn.Module):  # as UPerNet, which keeps its layers in a list too
        def __init__(self):
            super().__init__()
            self.pool = torch.nn.AdaptiveAvgPool2d(3)
            self.layers = [self.pool]

        def forward(self, x):
            return self.layers[0](x)

    shapes = {"x": {2: torch.export.Dim("height", min=4, max=99), 3: torch.export.Dim("width", min=4, max=99)}}
    module = _with_exact_pooling(Pools())
    x = torch.rand(1, 2, 12, 15)
    torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False).save(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for size in ((7, 11), (30, 8)):
        x = torch.rand(1, 2, *size)
        own = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        torch.testing.assert_close(own, torch.nn.functional.adaptive_avg_pool2d(x, 3))


@pytest.mark.slow
def test_a_file_that_is_not_the_model_is_removed(tmp_path, monkeypatch):
    monkeypatch.setitem(checking.LIMITS, "float", 1e-12)
    (tmp_path / "a.pt2").write_bytes(b"before")
    with pytest.raises(InputError, match=r"differs from the model by .* at 1x\d+x\d+ pixels, allowed are 1e-12"):
        export(small(), tmp_path / "a.pt2", CONFIG)
    assert (tmp_path / "a.pt2").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (dict(out="a.tflite"), r"out must end in .onnx, .pt2, .aoti.pt2 or _aoti \(a folder\), got .*a.tflite"),
        (dict(out="a.onnx", opset=7), r"opset must be 18 to \d+, got 7"),
        (dict(out="a.pt2", opset=18), "opset is for .onnx"),
        (dict(out="a.onnx", half=True, calibration="x"), r"half and calibration \(int8\) exclude each other"),
        (dict(out="a.onnx", calibration="missing"), "calibration must be a folder of pictures, got missing"),
        (dict(out="a.onnx", image="missing.jpg"), "missing.jpg"),
    ],
)
def test_one_clear_error(given, told, tmp_path):
    given = dict(given)
    with pytest.raises((InputError, OSError), match=told):
        export(small(), tmp_path / given.pop("out"), CONFIG, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_shape_that_cannot_vary_and_networks_that_cannot_be_exported(tmp_path):
    fixed = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=2)
    with pytest.raises(
        InputError, match=r"a VisionTransformer of one image size .* make it with dynamic_img_size=True"
    ):
        export(fixed, tmp_path / "a.pt2", CONFIG)
    with pytest.raises(InputError, match=r"out: torch.export cannot take this model at every size: \w"):
        export(MlpMixer(2, img_size=64, patch_size=32, num_blocks=1, embed_dim=32), tmp_path / "a.pt2", CONFIG)
    with pytest.raises(InputError, match="mask: VisionTransformer takes no mask"):
        export(fixed, tmp_path / "a.pt2", CONFIG, mask=True)
    args = dict(embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1), mixer="elu_linear")
    net = Detector("retinanet", "soft_nano", 2, model_args=args, fpn_channels=32)
    with pytest.raises(InputError, match=r"a detector cannot be exported: the choice of boxes \(NMS\)"):
        export(net, tmp_path / "a.pt2", CONFIG)
    assert program_of(net, features=True).outputs == ("map0", "map1", "map2", "map3")
    assert list(tmp_path.iterdir()) == []


def test_no_compiler(tmp_path):
    from torch._inductor import config

    told = r"needs a C\+\+ compiler, and none is found: install g\+\+"
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(InputError, match=told):
        export(small(), tmp_path / "a.aoti.pt2", CONFIG)


def test_the_model_stays_as_it_was_and_timm_tells_how_images_are_prepared(tmp_path):
    net = timm.create_model("soft_vit_tiny", **{**SMALL, "num_classes": 1}, mixer="elu_linear").train()
    net.norm.eval()
    before = [module.training for module in net.modules()]
    export(net, tmp_path / "a.onnx")  # one output, which has no range
    assert [module.training for module in net.modules()] == before
    told = {each.key: each.value for each in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(told["input_size"]) == [3, 224, 224]
